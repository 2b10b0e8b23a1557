/** Who is at the other end of a TCP connection within this host: Linux says it of UNIX sockets only, so /proc is searched. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'

/** A loopback connection, by its ports: the other end's and ours. */
export interface Loopback {
  theirs: number
  ours: number
}

export interface Peer {
  uid: number
  /** Who has that socket open: a process, and those of its children that inherited it. */
  pids: number[]
}

/** Of /proc/net/tcp: addresses and ports in hex, the user and the inode of each socket (Linux, Documentation/networking/proc_net_tcp.rst). */
const LINE = /^ *\d+: [0-9A-F]{8}:([0-9A-F]{4}) [0-9A-F]{8}:([0-9A-F]{4}) 01 \S+ \S+ \S+ +(\d+) +\d+ (\d+) /gm

/** Undefined if it is gone, or of another network namespace. */
export function loopbackPeer({ theirs, ours }: Loopback): Peer | undefined {
  for (const [, local, remote, uid, inode] of readFileSync('/proc/net/tcp', 'latin1').matchAll(LINE)) {
    if (Number.parseInt(local ?? '', 16) !== theirs || Number.parseInt(remote ?? '', 16) !== ours) continue
    return { uid: Number(uid), pids: holders(`socket:[${inode}]`) }
  }
  return undefined
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

function linkOf(path: string): string | undefined {
  try {
    return readlinkSync(path)
  } catch {
    return undefined
  }
}
