import { fstatSync } from 'node:fs'
import { Fault } from '../fault.ts'
import * as libc from './libc.ts'

/** A file descriptor that this process owns, non-blocking. Closed once, through `closeFd` of readiness.ts. */
export type Fd = number & { readonly __brand: 'Fd' }

/** The caller vouches that `n` is an open descriptor and that it is ours to close. */
export function asFd(n: number): Fd {
  return n as Fd
}

const hints: Record<string, string> = {
  EACCES: 'run as root, or choose a directory that you may write to',
  EPERM: 'run as root',
  ENOSPC: 'make room on that file system, or write elsewhere',
  EMFILE: 'raise the limit of open files: ulimit -n',
}

/** Turns minus errno into a `Fault`: `LINK` when the other end is gone, else `IO`. */
export function check(result: number, what: string): number {
  if (result >= 0) return result
  const name = libc.errnoName(-result)
  const gone = result === -libc.EPIPE || result === -libc.ECONNRESET
  const text = `${what}: ${gone ? 'the other end went away' : name} (${name})`
  throw new Fault(gone ? 'LINK' : 'IO', text, { hint: hints[name] })
}

/** A pipe with both ends non-blocking and close-on-exec: `[read end, write end]`. */
export function makePipe(): [Fd, Fd] {
  const ends = new Int32Array(2)
  check(libc.pipe2(ends, libc.O_NONBLOCK | libc.O_CLOEXEC), 'pipe')
  return [asFd(ends[0] as number), asFd(ends[1] as number)]
}

/** Makes a named pipe that only this user may use. Throws `IO`. */
export function makeFifo(path: string): void {
  check(libc.mkfifo(path, 0o600), 'mkfifo')
}

/** Opens both ends of a named pipe, so that it waits for no other process and does not end with one. Throws `IO`. */
export function openFifo(path: string): Fd {
  return asFd(check(libc.open(path, libc.O_RDWR | libc.O_NONBLOCK | libc.O_CLOEXEC, 0), 'open'))
}

/**
 * Locks an open file for this descriptor alone (flock(2)). Returns false where another one has the lock, or the file
 * system has no locks. The kernel drops the lock when the last descriptor is closed, however a process ends.
 */
export function tryLock(fd: number): boolean {
  return libc.flock(fd, libc.LOCK_EX | libc.LOCK_NB) === 0
}

/** A second descriptor for the same open file. */
export function duplicate(fd: number): Fd {
  return asFd(check(libc.fcntl(fd, libc.F_DUPFD_CLOEXEC, 3), 'dup'))
}

/**
 * A non-blocking descriptor for a pipe, socket or file that others may share, such as stdin. A pipe is opened anew, so
 * that they do not see the change; a socket cannot be, and Node would change it as well.
 */
export function ownNonBlocking(fd: number, direction: PipeEnd): Fd {
  if (isPipe(fd)) {
    const access = direction === 'read' ? libc.O_RDONLY : libc.O_WRONLY
    const anew = libc.open(`/proc/self/fd/${fd}`, access | libc.O_NONBLOCK | libc.O_CLOEXEC, 0)
    if (anew >= 0) return asFd(anew)
  }
  const own = duplicate(fd)
  setNonBlocking(own)
  return own
}

export function setNonBlocking(fd: Fd, nonBlocking = true): void {
  const flags = check(libc.fcntl(fd, libc.F_GETFL, 0), 'fcntl')
  const others = flags & ~libc.O_NONBLOCK
  check(libc.fcntl(fd, libc.F_SETFL, nonBlocking ? others | libc.O_NONBLOCK : others), 'fcntl')
}

/** For a program that takes it over and expects it so. */
export function setBlocking(fd: Fd): void {
  setNonBlocking(fd, false)
}

/**
 * Bytes asked of a pipe. CRIU's parasite hands over up to 4 MiB at a time, and with the default 64 KiB a dump takes
 * twice as long; above 4 MiB CRIU itself has difficulties (criu-image-streamer, src/unix_pipe.rs).
 */
const LARGEST_PIPE = 4 * 2 ** 20
const SMALLEST_PIPE = 64 * 2 ** 10
/** Larger ones gain little: capture alone of 1 GiB took 0.30 s with 1 to 4 MiB and 0.66 s with 64 KiB. */
const GOOD_PIPE = 2 ** 20

let smallest = GOOD_PIPE
let told = false

/** The smallest pipe that we had to be content with, if that costs time; undefined when it was told before. */
export function newsOfSmallPipes(): number | undefined {
  if (told || smallest === GOOD_PIPE) return undefined
  told = true
  return smallest
}

/** Makes a pipe as large as this user may: halves on a refusal. Returns its size in bytes. */
export function enlargePipe(fd: Fd): number {
  let got = -1
  for (let bytes = LARGEST_PIPE; bytes > SMALLEST_PIPE && got < 0; bytes /= 2) {
    got = libc.fcntl(fd, libc.F_SETPIPE_SZ, bytes)
  }
  if (got < 0) got = check(libc.fcntl(fd, libc.F_GETPIPE_SZ, 0), 'fcntl')
  smallest = Math.min(smallest, got)
  return got
}

/** Bytes that wait in a pipe. */
export function queued(pipe: Fd): number {
  const bytes = new Int32Array(1)
  check(libc.ioctlInt(pipe, libc.FIONREAD, bytes), 'ioctl')
  return bytes[0] as number
}

/** A TCP socket takes no more than about `bytes` bytes that it cannot send yet; without it, megabytes. */
export function limitUnsent(fd: number, bytes: number): void {
  check(libc.setsockopt(fd, libc.IPPROTO_TCP, libc.TCP_NOTSENT_LOWAT, Int32Array.of(bytes), 4), 'setsockopt')
}

/** Whether the descriptor is a pipe. */
export function isPipe(fd: number): boolean {
  return libc.fcntl(fd, libc.F_GETPIPE_SZ, 0) > 0
}

/** Writes a file to its disk, and reserves room there for `bytes` bytes more. Throws `IO`. */
export function settleFile(fd: Fd, bytes: number): void {
  const reserved = libc.fallocate(fd, libc.FALLOC_FL_KEEP_SIZE, fstatSync(fd).size, bytes)
  if (reserved !== -libc.EOPNOTSUPP) check(reserved, 'write')
  check(libc.fsync(fd), 'write')
}

/** An end of a pipe, by what can be done with it. */
export type PipeEnd = 'read' | 'write'

/**
 * Whether the descriptor is that end of a pipe and nothing else: a FIFO that is open both ways is neither. For what
 * somebody hands over: vmsplice(2) copies into a pipe at its write end, and out of it into our memory at its read end.
 */
export function isPipeEnd(fd: number, end: PipeEnd): boolean {
  return isPipe(fd) && accessOf(fd) === (end === 'read' ? libc.O_RDONLY : libc.O_WRONLY)
}

/** Whether an open descriptor can be read, or written. One that only names a file (O_PATH) can be neither. */
export function allows(fd: number, what: PipeEnd): boolean {
  const access = accessOf(fd)
  return access === libc.O_RDWR || access === (what === 'read' ? libc.O_RDONLY : libc.O_WRONLY)
}

/** O_RDONLY, O_WRONLY or O_RDWR; -1 for what allows none of them. */
function accessOf(fd: number): number {
  const flags = libc.fcntl(fd, libc.F_GETFL, 0)
  return flags < 0 || (flags & libc.O_PATH) !== 0 ? -1 : flags & libc.O_ACCMODE
}
