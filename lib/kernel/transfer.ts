/**
 * Moving bytes between descriptors and memory: the call, and the wait when it would block.
 *
 * Every function works on non-blocking descriptors (a regular file never blocks) and throws `LINK` when the other end
 * is gone, `IO` for the rest. None goes round without progress for ever: readiness.ts counts what was in vain, and a
 * call that takes nothing and says no reason is an error.
 */
import { Fault } from '../fault.ts'
import { asFd, check, type Fd, queued } from './fd.ts'
import * as libc from './libc.ts'
import { readable, writable } from './readiness.ts'

/** Reads what is there into `into`. Returns the bytes read, 0 at the end, undefined where there is nothing now. */
export function readNow(fd: Fd, into: Uint8Array): number | undefined {
  const got = libc.read(fd, into, into.length)
  return got === -libc.EAGAIN || got === -libc.EINTR ? undefined : check(got, 'read')
}

/** Writes what there is room for now, perhaps nothing. What fails is not told: for bytes that may be lost. */
export function writeNow(fd: Fd, bytes: Uint8Array): void {
  libc.write(fd, bytes, bytes.length)
}

/** Reads once into `into`. Returns the bytes read, 0 at the end of the file. */
export async function readSome(fd: Fd, into: Uint8Array): Promise<number> {
  for (let inVain = 0; ; ) {
    const got = libc.read(fd, into, into.length)
    if (got >= 0) return got
    if (got === -libc.EAGAIN) await readable(fd, inVain++)
    else if (got !== -libc.EINTR) return check(got, 'read')
  }
}

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
      const got = libc.recv(fd, into, into.length, libc.MSG_PEEK)
      if (got >= 0) return got
      if (got === -libc.EAGAIN) await readable(fd)
      else if (got !== -libc.EINTR) return check(got, 'recv')
    }
  } finally {
    lowWater(fd, 1)
  }
}

/** Fewer bytes wake nobody, as long as more may come. */
function lowWater(fd: Fd, bytes: number): void {
  libc.setsockopt(fd, libc.SOL_SOCKET, libc.SO_RCVLOWAT, Int32Array.of(bytes), 4)
}

/**
 * Most bytes that a reader of much lets come together before it is woken; and how long it lets them, from when it is a
 * slow link.
 */
const HEAP = 256 * 2 ** 10
const HEAP_MS = 50

/**
 * As `readSome`, for a socket: sleeps until what is wanted has come, a heap of it, or it turns out that it comes
 * slowly. `mark` is what the socket was told last, at first 1.
 *
 * The sender pays for waking us, on virtual machines dearly: of 1 GiB that it passes on by reference it had 10,000
 * wake-ups to pay without this and 2,200 with it, 0.63 and 0.43 s of its processor time.
 */
export async function readHeap(fd: Fd, into: Uint8Array, mark: Int32Array): Promise<number> {
  for (let inVain = 0; ; ) {
    const got = libc.read(fd, into, into.length)
    if (got >= 0) return got
    if (got === -libc.EAGAIN) await heaped(fd, Math.min(into.length, HEAP), mark, inVain++)
    else if (got !== -libc.EINTR) return check(got, 'read')
  }
}

async function heaped(fd: Fd, bytes: number, mark: Int32Array, inVain: number): Promise<void> {
  const tell = (wanted: number): void => {
    if (mark[0] === wanted) return
    mark[0] = wanted
    libc.setsockopt(fd, libc.SOL_SOCKET, libc.SO_RCVLOWAT, mark, 4)
  }
  tell(bytes)
  if (bytes === 1) return readable(fd, inVain)
  const slow = setTimeout(tell, HEAP_MS, 1)
  await readable(fd, inVain).finally(() => clearTimeout(slow))
}

/** Writes all of `bytes`. `more` tells a TCP socket that the next bytes follow at once. */
export async function writeAll(fd: Fd, bytes: Uint8Array, options: { more?: boolean; socket?: boolean } = {}) {
  const flags = libc.MSG_NOSIGNAL | (options.more === true ? libc.MSG_MORE : 0)
  let rest = bytes
  for (let inVain = 0; rest.length > 0; ) {
    const put = options.socket === true ? libc.send(fd, rest, rest.length, flags) : libc.write(fd, rest, rest.length)
    if (put > 0) {
      rest = rest.subarray(put)
      inVain = 0
    } else if (put === -libc.EAGAIN) await writable(fd, inVain++)
    else if (put !== -libc.EINTR) progress(put, 'write')
  }
}

/** The bytes that a call took. Throws as `check` does, and `IO` for none. */
function progress(bytes: number, what: string): number {
  if (check(bytes, what) > 0) return bytes
  throw new Fault('IO', `${what}: it takes nothing and does not say why`)
}

/** Passes `bytes` bytes of the pipe `from` on to a socket, by reference. */
export async function spliceAll(from: Fd, to: Fd, bytes: number): Promise<void> {
  let inVain = 0
  for (let left = bytes; left > 0; ) {
    const put = libc.splice(from, null, to, null, left, libc.SPLICE_F_MOVE | libc.SPLICE_F_NONBLOCK)
    if (put > 0) {
      left -= put
      inVain = 0
    } else if (put === -libc.EAGAIN && queued(from) > 0) await writable(to, inVain++)
    else if (put !== -libc.EINTR) check(put === 0 || put === -libc.EAGAIN ? -libc.EPIPE : put, 'splice')
  }
}

/** Copies at most `most` bytes from one pipe to another, and leaves them there. Returns how many. Throws `IO`. */
export function teeNow(from: Fd, to: Fd, most: number): number {
  return check(libc.tee(from, to, most, libc.SPLICE_F_NONBLOCK), 'tee')
}

/** Moves `bytes` bytes, which must be in the pipe `from`, to where there is room for them. Throws `IO`. */
export function moveNow(from: Fd, to: Fd, bytes: number): void {
  for (let left = bytes; left > 0; ) {
    const moved = libc.splice(from, null, to, null, left, libc.SPLICE_F_MOVE | libc.SPLICE_F_NONBLOCK)
    if (moved > 0) left -= moved
    else if (moved !== -libc.EINTR) {
      check(moved, 'splice')
      throw new Fault('IO', `splice: ${left} of ${bytes} bytes are missing`)
    }
  }
}

/** /dev/null, for bytes of a pipe that nobody needs. Throws `IO`. */
export function openNull(): Fd {
  return asFd(check(libc.open('/dev/null', libc.O_WRONLY | libc.O_CLOEXEC, 0), 'open /dev/null'))
}

const IOVEC_BYTES = 16

/** Bytes at an address. */
export interface Lent {
  address: bigint
  window: Uint8Array
}

/**
 * Lends memory to the pipe `to`: one piece behind the other, at most 1024 (UIO_MAXIOV). It must stay as it is until the
 * reader has taken it. `to` must be a write end (`isPipeEnd`): through a read end the same call fills the memory from
 * the pipe.
 */
export async function vmspliceAll(pieces: readonly Lent[], to: Fd): Promise<void> {
  const iovecs = Buffer.allocUnsafe(pieces.length * IOVEC_BYTES)
  pieces.forEach(({ address, window }, index) => {
    iovecs.writeBigUInt64LE(address, index * IOVEC_BYTES)
    writeLength(iovecs, index, window.length)
  })
  let inVain = 0
  for (let at = behind(iovecs, 0, 0); at < pieces.length; ) {
    const lent = libc.vmsplice(to, iovecs.subarray(at * IOVEC_BYTES), pieces.length - at, libc.SPLICE_F_NONBLOCK)
    if (lent > 0) {
      at = behind(iovecs, at, lent)
      inVain = 0
    } else if (lent === -libc.EAGAIN) await writable(to, inVain++)
    else if (lent !== -libc.EINTR) progress(lent, 'vmsplice')
  }
}

/** The first iovec that is not done with `bytes` bytes more; what it has left is what it says. */
function behind(iovecs: Buffer, first: number, bytes: number): number {
  let left = bytes
  for (let at = first; ; at++) {
    const begin = at * IOVEC_BYTES
    const length = begin < iovecs.length ? iovecs.readUIntLE(begin + 8, 6) : Number.POSITIVE_INFINITY
    if (left >= length) left -= length
    else {
      if (left === 0) return at
      iovecs.writeBigUInt64LE(iovecs.readBigUInt64LE(begin) + BigInt(left), begin)
      writeLength(iovecs, at, length - left)
      return at
    }
  }
}

function writeLength(iovecs: Buffer, index: number, bytes: number): void {
  iovecs.writeUIntLE(bytes, index * IOVEC_BYTES + 8, 6)
  iovecs.writeUInt16LE(0, index * IOVEC_BYTES + 14)
}
