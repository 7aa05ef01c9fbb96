"""The states of the bus: one pure function per machine, ``transition(state, event) -> (state, actions)``.

Standard library only, no I/O, no clock, no event loop. The modules beside this package own the sockets: they report
events, and they carry out actions in the given order. Every event fits every state: a late or repeated one changes
nothing. Events of a channel or a connection carry the number of the attempt that opened it, so that what an earlier
one still reports is not taken for news of the present one.
"""
