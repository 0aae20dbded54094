"""Secure aggregation: the server learns the sum of the clients' updates and no client's own.

SecAgg+ (Bell et al. 2020, "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead";
Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning",
figure 4 with the parts for active adversaries) in five stages. In each, every client gets a message
and replies:

    keys     each client makes two key pairs and signs their public halves with its identity key
    shares   each client checks all signatures against its roster, computes the graph, and splits
             its mask key and the seed of its self mask among its neighbours
    train    each client sends its update plus its self mask and one mask with each neighbour that
             shared, and signs the set of clients that shared, as it was shown to it
    confirm  each client checks that its neighbours signed the same set in the last stage, and signs
             the set of clients whose update arrived (left out if all have arrived and this needs no
             signatures, graph.is_unanimous)
    unmask   each client checks that enough others signed the same set. For a neighbour whose update
             arrived, it gives a share of the self mask's seed; for one that dropped out, a share of
             its mask key: the remaining masks are subtracted

It protects against a server that deviates from the protocol, together with up to `graph.COLLUDING`
of a round's clients, if the clients have the right identity keys of each other (docs/security.md).
"""
