/** Passing what is in a pipe to another pipe by reference (tee(2), splice(2)): nobody reads it. */
import { Fault } from '../fault.ts'
import { asFd, check, type Fd } from './fd.ts'
import { EINTR, O_CLOEXEC, O_WRONLY, open, SPLICE_F_MOVE, SPLICE_F_NONBLOCK, splice, tee } from './libc.ts'

/** Copies at most `most` bytes from one pipe to another, and leaves them there. Returns how many. Throws `IO`. */
export function teeNow(from: Fd, to: Fd, most: number): number {
  return check(tee(from, to, most, SPLICE_F_NONBLOCK), 'tee')
}

/** Moves `bytes` bytes, which must be in the pipe `from`, to where there is room for them. Throws `IO`. */
export function moveNow(from: Fd, to: Fd, bytes: number): void {
  for (let left = bytes; left > 0; ) {
    const moved = splice(from, null, to, null, left, SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
    if (moved > 0) left -= moved
    else if (moved !== -EINTR) {
      check(moved, 'splice')
      throw new Fault('IO', `splice: ${left} of ${bytes} bytes are missing`)
    }
  }
}

/** /dev/null, for bytes of a pipe that nobody needs. Throws `IO`. */
export function openNull(): Fd {
  return asFd(check(open('/dev/null', O_WRONLY | O_CLOEXEC, 0), 'open /dev/null'))
}
