/** What has come on a socket and is still there to be read. */
import { check, type Fd } from './fd.ts'
import { EAGAIN, EINTR, MSG_PEEK, recv, SO_RCVLOWAT, SOL_SOCKET, setsockopt } from './libc.ts'
import { readable } from './readiness.ts'

/**
 * Looks at the first bytes that come, without taking them: waits until there are as many as `into` holds, or no more
 * come. Returns how many there are. The kernel wakes us once for it, however often the peer sends a byte. Throws
 * `LINK`, and what `closeFd` of `fd` rejects with.
 */
export async function peek(fd: Fd, into: Uint8Array): Promise<number> {
  lowWater(fd, into.length)
  try {
    await readable(fd)
    for (;;) {
      const got = recv(fd, into, into.length, MSG_PEEK)
      if (got >= 0) return got
      if (got === -EAGAIN) await readable(fd)
      else if (got !== -EINTR) return check(got, 'recv')
    }
  } finally {
    lowWater(fd, 1)
  }
}

/** Fewer bytes wake nobody, as long as more may come. */
function lowWater(fd: Fd, bytes: number): void {
  setsockopt(fd, SOL_SOCKET, SO_RCVLOWAT, Int32Array.of(bytes), 4)
}
