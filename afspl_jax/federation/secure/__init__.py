"""Secure aggregation: the server learns the sum of the clients' updates and no client's own.

SecAgg+ (Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead",
section 3; Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine
Learning") in four stages, each a message to every client and its reply:

    keys    each client makes two key pairs; the server joins the clients to a graph
    shares  each client splits its mask key and the seed of its own mask over its neighbours
    train   each client sends its update under its own mask and one mask with each neighbour
    unmask  of a client whose update came, its neighbours give the seed of its own mask;
            of one that was lost, its mask key: with either what is left of masks is subtracted

Whom it is safe from: a server that follows the protocol and remembers all, together with up to
`graph.COLLUDING` of a round's clients. What it is not safe from is a server that does something
else (docs/security.md); of that, a client refuses what it can see.
"""
