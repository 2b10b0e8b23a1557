/** Descriptors that this process has inherited from its starter. */
import { closeSync, readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { allows } from '../kernel/fd.ts'
import { wholeNumber } from './parse.ts'

/** The number of an open descriptor that we inherited, from 3 up. `flag` names the option. Throws `USAGE`. */
export function inheritedFd(flag: string, text: string): number {
  const fd = wholeNumber(flag, text, 3, 2 ** 20)
  const what = linkOf(fd)
  if (what !== '' && !isOfNode(what)) return fd
  throw new Fault('USAGE', `${flag}: fd ${fd} is not open`, {
    hint: `the program that starts this command must pass fd ${fd} on`,
  })
}

/** Like `inheritedFd`, for a descriptor that is open for writing. */
export function inheritedOutput(flag: string, text: string): number {
  const fd = inheritedFd(flag, text)
  if (allows(fd, 'write')) return fd
  throw new Fault('USAGE', `${flag}: fd ${fd} is not open to write`, { hint: 'pass on the write end of a pipe' })
}

/**
 * Closes the descriptors that we inherited and that a program which we start would inherit too, but for `except`: a
 * daemon must not hold its starter's pipes and locks. Node marks its own descriptors, and the lowest that it inherited,
 * close-on-exec.
 */
export function closeInherited(except: readonly number[]): void {
  for (const fd of readdirSync('/proc/self/fd').map(Number)) {
    if (fd <= 2 || except.includes(fd)) continue
    try {
      if ((flagsOf(fd) & O_CLOEXEC) === 0) closeSync(fd)
    } catch {
      // It was open only for reading the directory.
    }
  }
}

const O_CLOEXEC = 0o2000000

function flagsOf(fd: number): number {
  const flags = /^flags:\s+(\d+)$/m.exec(readFileSync(`/proc/self/fdinfo/${fd}`, 'utf8'))?.[1] ?? '0'
  return Number.parseInt(flags, 8)
}

/** Whether it is one of Node's own: epoll, eventfd, or a pipe of which this process has both ends. */
function isOfNode(what: string): boolean {
  if (what.startsWith('anon_inode:')) return true
  return what.startsWith('pipe:') && readdirSync('/proc/self/fd').filter((each) => linkOf(each) === what).length > 1
}

/** What the descriptor leads to, as `pipe:[17]`; empty if it is not open. */
function linkOf(fd: number | string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`)
  } catch {
    return ''
  }
}

const FIRST_LISTEN_FD = 3

/** The sockets that systemd hands over (sd_listen_fds(3)); none if they are for another process. Throws `USAGE`. */
export function listenFds(): number[] {
  const { LISTEN_PID, LISTEN_FDS = '' } = process.env
  if (LISTEN_PID !== String(process.pid)) return []
  const count = wholeNumber('LISTEN_FDS', LISTEN_FDS, 0, 1000)
  return Array.from({ length: count }, (_, index) => inheritedFd('LISTEN_FDS', String(FIRST_LISTEN_FD + index)))
}

/** The listening socket that systemd hands over, if there is one. Throws `USAGE` for more than one. */
export function listenFd(): number | undefined {
  const fds = listenFds()
  if (fds.length < 2) return fds[0]
  throw new Fault('USAGE', `LISTEN_FDS hands over ${fds.length} sockets`, {
    hint: 'one ListenStream= in the socket unit',
  })
}
