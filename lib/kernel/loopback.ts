/** Who is at the other end of a TCP connection within this host: Linux says it of UNIX sockets only, so /proc is searched. */
import { readdirSync, readFileSync, readlinkSync } from 'node:fs'
import { endianness } from 'node:os'

/** A connection within this host, by IPv4 addresses and ports: the other end's and ours. */
export interface Loopback {
  theirs: End
  ours: End
}

interface End {
  address: string
  port: number
}

/** Of /proc/net/tcp: the two ends in hex, the user and the inode of each socket (Linux, Documentation/networking/proc_net_tcp.rst). */
const LINE = /^ *\d+: ([0-9A-F]{8}:[0-9A-F]{4}) ([0-9A-F]{8}:[0-9A-F]{4}) 01 \S+ \S+ \S+ +(\d+) +\d+ (\d+) /gm

/**
 * Who has the other end open: a process, and those of its children that inherited it. None where it is of another user than `uids`, is gone, or is of
 * another network namespace.
 */
export function loopbackPeers({ theirs, ours }: Loopback, uids: readonly (number | undefined)[]): number[] {
  for (const [, local, remote, uid, inode] of readFileSync('/proc/net/tcp', 'latin1').matchAll(LINE)) {
    if (local !== hexOf(theirs) || remote !== hexOf(ours)) continue
    return uids.includes(Number(uid)) ? holders(`socket:[${inode}]`) : []
  }
  return []
}

/** An address is a number in the order of this machine's bytes. */
function hexOf({ address, port }: End): string {
  const bytes = Buffer.from(address.split('.').map(Number))
  const number = endianness() === 'LE' ? bytes.readUInt32LE() : bytes.readUInt32BE()
  return [number.toString(16).padStart(8, '0'), port.toString(16).padStart(4, '0')].join(':').toUpperCase()
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
