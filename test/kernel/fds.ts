/** Descriptors as tests need them: counted, connected, read to the end. */
import { readdirSync, readlinkSync } from 'node:fs'
import { join } from 'node:path'
import type { Fd } from '../../lib/kernel/fd.ts'
import { closeFd } from '../../lib/kernel/readiness.ts'
import { acceptUnix, connectUnix, listenUnix } from '../../lib/kernel/unix.ts'
import { temporary } from '../support/run.ts'

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
