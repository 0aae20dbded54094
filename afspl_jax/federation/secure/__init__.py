"""Secure aggregation: the server learns the sum of the clients' updates and no client's own.

SecAgg+ (Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
section 3; Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning") in four stages. In each, every client gets a message and replies:

    keys    each client makes two key pairs; the server joins the clients to a graph
    shares  each client splits its mask key and the seed of its self mask among its neighbours
    train   each client sends its update plus its self mask and one mask with each neighbour
    unmask  for a client whose update arrived, its neighbours give shares of the self mask's seed;
            for a client that dropped out, shares of its mask key: the remaining masks are
            subtracted

It protects against a server that follows the protocol and remembers everything, together with up to
`graph.COLLUDING` of a round's clients. It does not protect against a server that deviates from the
protocol (docs/security.md); a client rejects the deviations that it can see.
"""
