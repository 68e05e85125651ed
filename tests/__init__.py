"""The tests, and the programs that measure and attack; README.md beside this file says which.

Whoever starts them in the background (``python -m tests &``, nohup) makes them ignore signals, and
every program that they start would inherit that. So an ignored signal is given a handler that does
nothing: it does not disturb the tests either, but exec and the fork server reset it.
"""

import signal

for _number in signal.valid_signals():
    # Python itself ignores these two, and resets them in the processes that it starts.
    if signal.getsignal(_number) == signal.SIG_IGN and _number not in (
        getattr(signal, "SIGPIPE", None),
        getattr(signal, "SIGXFSZ", None),
    ):
        signal.signal(_number, lambda *_: None)
