// Requests the page again while it is visible, and replaces the parts that changed.
const EVERY = 2000; // milliseconds
let tag = null;

function put(old, fresh) {
  if (old.outerHTML === fresh.outerHTML) return;
  const opened = [...old.querySelectorAll("details")].map((element) => element.open);
  const usable = "a[href], summary, [tabindex]";
  const at = [...old.querySelectorAll(usable)].indexOf(document.activeElement);
  const places = [...old.querySelectorAll(".scroll")].map((e) => [e.scrollLeft, e.scrollTop]);
  const next = document.importNode(fresh, true);
  next.querySelectorAll("details").forEach((element, i) => (element.open = Boolean(opened[i])));
  old.replaceWith(next);
  next.querySelectorAll(".scroll").forEach((e, i) => places[i] && e.scrollTo(...places[i]));
  if (at >= 0) next.querySelectorAll(usable)[at]?.focus({ preventScroll: true });
}

async function refresh() {
  const headers = tag ? { "If-None-Match": tag } : {};
  const answer = await fetch("/", { headers, cache: "no-store" });
  if (answer.status === 304) return;
  if (!answer.ok) throw new Error(await answer.text());
  tag = answer.headers.get("ETag");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const ids = (page) => [...page.querySelectorAll("[data-live]")].map((part) => part.id).join();
  if (ids(document) !== ids(fresh)) return location.reload(); // parts were added or removed
  for (const part of fresh.querySelectorAll("[data-live]")) put(document.getElementById(part.id), part);
}

async function follow() {
  let text = "This page updates itself.";
  try {
    if (!document.hidden) await refresh();
  } catch (error) {
    text = error instanceof TypeError ? "The dashboard does not respond: start it again." : error.message;
  }
  const link = document.getElementById("link");
  if (link.textContent !== text) link.textContent = text;
  setTimeout(follow, EVERY);
}
setTimeout(follow, EVERY);
