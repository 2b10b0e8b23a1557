/** Descriptors as tests need them: counted, connected, read to the end. */
import { closeSync, constants, openSync, readdirSync, readlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { check, type Fd } from '../../lib/kernel/fd.ts'
import { mkfifo, O_ACCMODE, O_PATH } from '../../lib/kernel/libc.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { acceptUnix, connectUnix, listenUnix, socketPair as pairOfSockets } from '../../lib/kernel/unix.ts'
import { temporary } from '../support/run.ts'

// Node.js 24 may still close the files of the modules that it has loaded.
for (let [last, same] = [-1, 0]; same < 4; await setTimeout(50)) {
  const now = openFds()
  same = now === last ? same + 1 : 0
  last = now
}

/** How many descriptors this process has. */
export function openFds(): number {
  return readdirSync('/proc/self/fd').length
}

/** How many ends of pipes this process has. */
export function openPipes(): number {
  const isPipe = (fd: string): boolean => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`).startsWith('pipe:')
    } catch {
      return false
    }
  }
  return readdirSync('/proc/self/fd').filter(isPipe).length
}

/** Two ends of a connected UNIX socket. */
export async function socketPair(): Promise<[Fd, Fd]> {
  const { path, remove } = temporary()
  const listener = listenUnix(join(path, 'socket'))
  const client = connectUnix(join(path, 'socket'))
  const server = await acceptUnix(listener)
  closeFd(listener)
  remove()
  return [client, server]
}

/**
 * Descriptors that are no end of a pipe: what somebody may hand over who is not CRIU, or what a mistake may. `close`
 * closes them.
 */
export function strangeFds() {
  const { path, remove } = temporary()
  const [fifo, file] = [join(path, 'fifo'), join(path, 'file')]
  check(mkfifo(fifo, 0o600), 'mkfifo')
  writeFileSync(file, 'a file')
  const [socket, other] = pairOfSockets()
  const fds = {
    'a FIFO both ways': openSync(fifo, constants.O_RDWR | constants.O_NONBLOCK),
    'a FIFO by name': openSync(fifo, O_PATH),
    'a file by name': openSync(file, O_PATH),
    'a file to read': openSync(file, 'r'),
    'a file to write': openSync(file, 'a'),
    // On Linux that is for ioctl(2) alone.
    'a file for neither': openSync(file, O_ACCMODE),
    'a directory': openSync(path, 'r'),
    'a device': openSync('/dev/null', 'r+'),
    'a socket': socket as number,
  }
  return {
    fds,
    close() {
      for (const fd of [...Object.values(fds), other]) closeSync(fd)
      remove()
    },
  }
}

export const isRoot = process.geteuid?.() === 0

/** Runs `act` with the rights of nobody. */
export function asNobody<Result>(act: () => Result): Result {
  process.seteuid?.(65534)
  try {
    return act()
  } finally {
    process.seteuid?.(0)
  }
}
