// Looks at a page in Chromium as people do: light, dark, on a phone, with a keyboard, with axe-core.
// node look.js URL CHROMIUM [FOLDER FOR SCREENSHOTS]; prints one JSON object.
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core/axe.min.js");

const FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"];
const QUIET = ["--disable-background-networking", "--disable-component-update", "--disable-sync"];
const VIEWS = [
  ["light", { colorScheme: "light", viewport: { width: 1200, height: 900 } }],
  ["dark", { colorScheme: "dark", viewport: { width: 1200, height: 900 } }],
  ["phone", { colorScheme: "light", viewport: { width: 360, height: 740 } }],
];

async function main([url, executablePath, shots]) {
  const browser = await chromium.launch({ executablePath, args: [...FLAGS, ...QUIET] });
  const out = {};
  for (const [name, options] of VIEWS) {
    const context = await browser.newContext({ ...options, bypassCSP: true });
    const page = await context.newPage();
    const requests = [], errors = [];
    page.on("request", (request) => requests.push(request.url()));
    page.on("pageerror", (error) => errors.push(String(error)));
    await page.goto(url);
    await page.evaluate(() => document.querySelectorAll("details").forEach((d) => (d.open = true)));
    if (shots) await page.screenshot({ path: `${shots}/${name}.png`, fullPage: true });
    await page.addScriptTag({ path: axe });
    const found = await page.evaluate(() => axe.run());
    out[name] = {
      violations: found.violations.map((v) => `${v.id}: ${v.nodes[0].html.slice(0, 200)}`),
      passes: found.passes.length,
      requests: requests.filter((r) => !r.startsWith("data:") && !r.startsWith(url.split("#")[0])),
      errors,
      overflow: await page.evaluate(
        () => document.documentElement.scrollWidth - document.documentElement.clientWidth
      ),
      executed: await page.evaluate(() => Boolean(window.malicious)),
    };
    if (name === "light") out.keyboard = await keyboard(page);
    await context.close();
  }
  await browser.close();
  console.log(JSON.stringify(out));
}

// Tabs through the page: which of what can be used is reached, and whether one sees where one is.
async function keyboard(page) {
  const wanted = await page.evaluate(
    () => document.querySelectorAll("a[href], summary, [tabindex='0']").length
  );
  const seen = new Set();
  let unseen = 0;
  for (let i = 0; i < wanted + 5; i++) {
    await page.keyboard.press("Tab");
    const at = await page.evaluate(() => {
      const element = document.activeElement;
      const all = [...document.querySelectorAll("*")];
      const style = getComputedStyle(element);
      return [all.indexOf(element), style.outlineStyle !== "none" && style.outlineWidth !== "0px"];
    });
    seen.add(at[0]);
    if (!at[1] && (await page.evaluate(() => document.activeElement !== document.body))) unseen++;
  }
  return { wanted, reached: seen.size, unseen };
}

main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(1);
});
