/**
 * Moving bytes between descriptors and memory: the call, and the wait when it would block.
 *
 * Every function works on non-blocking descriptors (a regular file never blocks) and throws `LINK` when the other end
 * is gone, `IO` for the rest.
 */
import { check, type Fd } from './fd.ts'
import * as libc from './libc.ts'
import { readable, writable } from './readiness.ts'

/** Reads once into `into`. Returns the bytes read, 0 at the end of the file. */
export async function readSome(fd: Fd, into: Uint8Array): Promise<number> {
  for (;;) {
    const got = libc.read(fd, into, into.length)
    if (got >= 0) return got
    if (got === -libc.EAGAIN) await readable(fd)
    else if (got !== -libc.EINTR) return check(got, 'read')
  }
}

/** Writes all of `bytes`. `more` tells a TCP socket that the next bytes follow at once. */
export async function writeAll(fd: Fd, bytes: Uint8Array, options: { more?: boolean; socket?: boolean } = {}) {
  const flags = libc.MSG_NOSIGNAL | (options.more === true ? libc.MSG_MORE : 0)
  let rest = bytes
  while (rest.length > 0) {
    const put = options.socket === true ? libc.send(fd, rest, rest.length, flags) : libc.write(fd, rest, rest.length)
    if (put >= 0) rest = rest.subarray(put)
    else if (put === -libc.EAGAIN) await writable(fd)
    else if (put !== -libc.EINTR) check(put, 'write')
  }
}

const IOVEC_BYTES = 16

/** Lends `bytes` bytes at `address` to the pipe `to`. They must stay as they are until the reader has taken them. */
export async function vmspliceAll(address: bigint, bytes: number, to: Fd): Promise<void> {
  const iovec = Buffer.alloc(IOVEC_BYTES)
  for (let done = 0; done < bytes; ) {
    iovec.writeBigUInt64LE(address + BigInt(done), 0)
    iovec.writeBigUInt64LE(BigInt(bytes - done), 8)
    const lent = libc.vmsplice(to, iovec, 1, libc.SPLICE_F_NONBLOCK)
    if (lent > 0) done += lent
    else if (lent === -libc.EAGAIN) await writable(to)
    else if (lent !== -libc.EINTR) check(lent, 'vmsplice')
  }
}
