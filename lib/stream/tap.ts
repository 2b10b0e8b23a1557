/**
 * Looking at the bytes of a CRIU pipe on their way out: the digest needs to see them, the link needs to get them.
 *
 * Fast: tee() duplicates references to the pages into a second pipe, which is read for the digest, and splice() moves
 * the pages themselves: one copy for the digest, none for the link. Slow: read() and write(), two copies. Both have the
 * same signature and give the same bytes.
 */

import { check, enlargePipe, type Fd, makePipe } from '../kernel/fd.ts'
import * as libc from '../kernel/libc.ts'
import { closeFd } from '../kernel/readiness.ts'
import type { Outlet } from './link.ts'

export interface Tap {
  /** The next bytes in the pipe, at most `scratch` long; empty at the end, undefined when there are none yet. */
  peek(pipe: Fd): Uint8Array | undefined
  /** Sends the bytes that `peek` showed. */
  pass(pipe: Fd, bytes: Uint8Array, outlet: Outlet): Promise<void>
  close(): void
}

/** A tap for one outlet, with a scratch buffer of `bytes` bytes. */
export function openTap(outlet: Outlet, bytes: number): Tap {
  const scratch = Buffer.allocUnsafeSlow(bytes)
  const splice = outlet.splice
  if (splice === undefined) return copyingTap(scratch)
  const [out, into] = makePipe()
  const room = enlargePipe(into)
  return {
    peek(pipe) {
      const seen = now(libc.tee(pipe, into, Math.min(room, bytes), libc.SPLICE_F_NONBLOCK), 'tee')
      for (let copied = 0; copied < (seen ?? 0); ) {
        copied += check(libc.read(out, scratch.subarray(copied), (seen ?? 0) - copied), 'read')
      }
      return seen === undefined ? undefined : scratch.subarray(0, seen)
    },
    pass: (pipe, seen) => splice(pipe, seen.length),
    close() {
      closeFd(out)
      closeFd(into)
    },
  }
}

function copyingTap(scratch: Buffer): Tap {
  return {
    peek(pipe) {
      const got = now(libc.read(pipe, scratch, scratch.length), 'read')
      return got === undefined ? undefined : scratch.subarray(0, got)
    },
    pass: (_pipe, bytes, outlet) => outlet.send(bytes),
    close() {},
  }
}

/** Undefined where the call would wait. */
function now(result: number, what: string): number | undefined {
  return result === -libc.EAGAIN || result === -libc.EINTR ? undefined : check(result, what)
}
