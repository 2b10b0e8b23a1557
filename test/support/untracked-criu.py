#!/usr/bin/env python3
"""Stands for a criu on a kernel that tracks changed pages: dump is the real one ($REAL_CRIU), of everything; a pre-dump is one page that is
made up, of a task that the dump has not, after $ROUND_SECONDS."""
import os, socket, struct, sys, time

words = sys.argv[1:]
if words[0] == 'dump':
    words.remove('--track-mem')
    at = words.index('--prev-images-dir')
    del words[at:at + 2]
    os.execv(os.environ['REAL_CRIU'], [os.environ['REAL_CRIU'], *words])
OPEN2, ADD_PRESENT, FORCE_CLOSE = 4, 6 | 4 << 16, 0x1024
task = (1 << 21 | 7) << 8 | 1
server = socket.socket(fileno=3)


def say(command, pages=0, vaddr=0, dst=0):
    server.sendall(struct.pack('<QQQQ', command, pages, vaddr, dst))


time.sleep(float(os.environ.get('ROUND_SECONDS', '0')))
say(OPEN2, dst=task)
server.recv(1)
say(ADD_PRESENT, 1, 1 << 16, task)
server.sendall(b'x' * 4096)
say(FORCE_CLOSE)
sys.exit(server.recv(4) != bytes(4))
