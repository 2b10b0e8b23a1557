/** Which processes are at the other end of a TCP connection within this host: those who have its socket open. */
import { readdirSync, readlinkSync } from 'node:fs'
import { type Loopback, ownerOf } from './tcp-owner.ts'

/**
 * The processes that have the other end open: one, and those of its children that inherited it. None where it is of
 * another user than `uids`, is gone, or is of another network namespace.
 */
export function loopbackPeers(ends: Loopback, uids: readonly (number | undefined)[]): number[] {
  const owner = ownerOf(ends)
  return owner !== undefined && uids.includes(owner.uid) ? holders(`socket:[${owner.inode}]`) : []
}

function holders(socket: string): number[] {
  return readdirSync('/proc')
    .filter((name) => /^\d+$/.test(name) && holds(`/proc/${name}/fd`, socket))
    .map(Number)
}

/** Processes end while one looks. */
function holds(directory: string, socket: string): boolean {
  try {
    return readdirSync(directory).some((fd) => linkOf(`${directory}/${fd}`) === socket)
  } catch {
    return false
  }
}

/** What it points to; undefined if it is gone. */
export function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}
