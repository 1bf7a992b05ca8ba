"""towline status --watch on a terminal: watch.py SIGNAL TOWLINE STATE

Lets it draw some pages, sends the signal, and prints what the terminal was told at the end and how it ended.
"""

import os
import pty
import select
import signal
import sys
import time

name, towline, state = sys.argv[1:]
pid, terminal = pty.fork()
if pid == 0:
    os.execv(towline, [towline, "status", "--watch", "200ms", "--state", state])
seen = b""
deadline = time.monotonic() + 20
sent = False
while time.monotonic() < deadline:
    if select.select([terminal], [], [], 0.1)[0]:
        try:
            data = os.read(terminal, 65536)
        except OSError:
            break
        if not data:
            break
        seen += data
    # Three whole pages.
    if not sent and seen.count(b"\x1b[J") >= 3:
        os.kill(pid, getattr(signal, name))
        sent = True
status = os.waitpid(pid, 0)[1]
assert seen.startswith(b"\x1b[?1049h\x1b[?25l"), seen[:80]
assert seen.endswith(b"\x1b[?25h\x1b[?1049l"), seen[-80:]
page = seen.split(b"\x1b[J")[2]
for word in (b"health", b"guarantee", b"UTC", b"/s"):
    assert word in page, (word, page)
assert os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0, status
print("restored")
