/**
 * Finds the user who has the other end of a TCP connection within this host. Linux tells it of UNIX sockets only
 * (SO_PEERCRED), so the
 * other end's socket is looked up by its two addresses: by sock_diag(7), which costs 10 us however many sockets there
 * are, or in /proc/net/tcp where the kernel has no sock_diag.
 *
 * A socket whose process has closed it has no inode, and the user that the kernel names then (root, in most releases)
 * means nothing: it is nobody's.
 */
import { readFileSync } from 'node:fs'
import { isIPv4 } from 'node:net'
import { endianness } from 'node:os'
import * as libc from './libc.ts'

/** A connection within this host, by addresses and ports: the other end's and ours. */
export interface Loopback {
  theirs: End
  ours: End
}

export interface End {
  address: string
  port: number
}

/** The socket at the other end. */
export interface Owner {
  /** The user of the process that made the socket, as seen from our user namespace. */
  uid: number
  inode: number
}

/** It has found somebody: a kernel whose part for TCP (tcp_diag) is a module that cannot be loaded finds nobody. */
let diagKnows = false

/**
 * Undefined where it is closed, or of another network namespace. Throws an errno where there is no descriptor left to
 * ask with.
 */
export function ownerOf(ends: Loopback, look = ownerBySockDiag): Owner | undefined {
  const found = socketAt(ends, look)
  return found === 'none' || found.inode === 0 ? undefined : found
}

/**
 * The same, with an inode of 0 where it was not accepted yet. `none` where there is no such socket, or its process has
 * closed it.
 */
export function socketAt(ends: Loopback, look = ownerBySockDiag): Owner | 'none' {
  const said = look(ends)
  diagKnows ||= said !== undefined && said !== 'none'
  return said === undefined || (said === 'none' && !diagKnows) ? ownerByProc(ends) : said
}

/** Whether the address is one of this host's loopback interface. */
export function isLoopback(address: string): boolean {
  const plain = plainAddress(address)
  return plain === '::1' || (isIPv4(plain) && plain.startsWith('127.'))
}

/** The IPv4 address in a mapped one. */
function plainAddress(address: string): string {
  return address.toLowerCase().startsWith('::ffff:') ? address.slice('::ffff:'.length) : address
}

/** Linux, include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h. */
const NLMSG_HEADER = 16
const SOCK_DIAG_BY_FAMILY = 20
const NLM_F_REQUEST = 1
const NLMSG_ERROR = 2
const ID_BYTES = 48
const REQUEST_BYTES = 8 + ID_BYTES
const UID_AT = NLMSG_HEADER + 4 + ID_BYTES + 12
const ANSWER_BYTES = UID_AT + 8
const ANY_STATE = 0xffffffff

/** One block for every request and answer, for ever: the kernel gets addresses, which keep nothing alive. */
const block = Buffer.alloc(1024)
let absent = false

/** `none` where none is found, undefined where the kernel cannot be asked. */
export function ownerBySockDiag({ theirs, ours }: Loopback): Owner | 'none' | undefined {
  if (absent) return undefined
  const request = Buffer.alloc(NLMSG_HEADER + REQUEST_BYTES)
  request.writeUInt32LE(request.length, 0)
  request.writeUInt16LE(SOCK_DIAG_BY_FAMILY, 4)
  request.writeUInt16LE(NLM_F_REQUEST, 6)
  const local = addressBytes(theirs.address)
  const remote = addressBytes(ours.address)
  request.writeUInt8(local.length === 4 ? libc.AF_INET : libc.AF_INET6, NLMSG_HEADER)
  request.writeUInt8(libc.IPPROTO_TCP, NLMSG_HEADER + 1)
  request.writeUInt32LE(ANY_STATE, NLMSG_HEADER + 4)
  const id = NLMSG_HEADER + 8
  request.writeUInt16BE(theirs.port, id)
  request.writeUInt16BE(ours.port, id + 2)
  local.copy(request, id + 4)
  remote.copy(request, id + 20)
  request.fill(0xff, id + 40, id + 48)
  const got = ask(request)
  if (got >= NLMSG_HEADER + 4 && block.readUInt16LE(4) === NLMSG_ERROR) {
    // There is no such socket, or nobody in the kernel who knows of any.
    if (block.readInt32LE(NLMSG_HEADER) === -libc.ENOENT) return 'none'
  } else if (got >= ANSWER_BYTES && block.readUInt16LE(4) === SOCK_DIAG_BY_FAMILY) {
    // Where there is no such connection the kernel answers with whoever listens there.
    if (block.readUInt16BE(NLMSG_HEADER + 4 + 2) !== ours.port) return 'none'
    const owner = { uid: block.readUInt32LE(UID_AT), inode: block.readUInt32LE(UID_AT + 4) }
    return isClosed(owner, block.readUInt8(NLMSG_HEADER + 1)) ? 'none' : owner
  }
  // Descriptors may come back.
  absent = got !== -libc.EMFILE && got !== -libc.ENFILE
  return undefined
}

/** Linux, include/net/tcp_states.h. */
const TCP_ESTABLISHED = 1
const TCP_SYN_RECV = 3

/** Whether its process has closed it. One that was not accepted yet has no inode either, but is open. */
function isClosed({ inode }: Owner, state: number): boolean {
  return inode === 0 && state !== TCP_ESTABLISHED && state !== TCP_SYN_RECV
}

/** The kernel answers while it is asked. Returns the length of the answer, or minus errno. */
function ask(request: Buffer): number {
  const fd = libc.socket(
    libc.AF_NETLINK,
    libc.SOCK_DGRAM | libc.SOCK_NONBLOCK | libc.SOCK_CLOEXEC,
    libc.NETLINK_SOCK_DIAG,
  )
  if (fd < 0) return fd
  try {
    const sent = libc.send(fd, request, request.length, 0)
    if (sent < 0) return sent
    for (;;) {
      const got = libc.recv(fd, block, block.length, 0)
      if (got !== -libc.EINTR) return got
    }
  } finally {
    libc.close(fd)
  }
}

/** In the network's order. */
function addressBytes(address: string): Buffer {
  const plain = plainAddress(address)
  if (isIPv4(plain)) return Buffer.from(plain.split('.').map(Number))
  const [head = '', tail] = plain.split('%')[0]?.split('::') ?? []
  const words = (text: string | undefined): number[] =>
    text === undefined || text === '' ? [] : text.split(':').map((word) => Number.parseInt(word, 16))
  const [before, after] = [words(head), words(tail)]
  const all = [...before, ...new Array<number>(Math.max(0, 8 - before.length - after.length)).fill(0), ...after]
  const bytes = Buffer.alloc(16)
  all.slice(0, 8).forEach((word, at) => {
    bytes.writeUInt16BE(word & 0xffff, 2 * at)
  })
  return bytes
}

/**
 * The two ends in hex, the state, the user and the inode of each socket (Linux,
 * Documentation/networking/proc_net_tcp.rst).
 */
const LINE = /^ *\d+: ([0-9A-F]+:[0-9A-F]{4}) ([0-9A-F]+:[0-9A-F]{4}) (\S+) \S+ \S+ \S+ +(\d+) +\d+ (\d+) /gm

/** The same from /proc/net/tcp. Throws what reading it throws. */
export function ownerByProc({ theirs, ours }: Loopback): Owner | 'none' {
  const isV4 = addressBytes(theirs.address).length === 4
  for (const table of isV4 ? ['tcp', 'tcp6'] : ['tcp6']) {
    const [local, remote] = [hexOf(theirs, table), hexOf(ours, table)]
    for (const [, one, other, state = '', uid, inode] of readFileSync(`/proc/net/${table}`, 'latin1').matchAll(LINE)) {
      if (one !== local || other !== remote) continue
      const owner = { uid: Number(uid), inode: Number(inode) }
      return isClosed(owner, Number.parseInt(state, 16)) ? 'none' : owner
    }
  }
  return 'none'
}

const MAPPED = Buffer.from('00000000000000000000ffff', 'hex')

/** Addresses are numbers of 32 bits in the order of this machine's bytes. */
function hexOf({ address, port }: End, table: string): string {
  const bytes = addressBytes(address)
  const whole = table === 'tcp6' && bytes.length === 4 ? Buffer.concat([MAPPED, bytes]) : bytes
  const numbers = endianness() === 'LE' ? Buffer.from(whole).swap32() : whole
  return `${numbers.toString('hex')}:${port.toString(16).padStart(4, '0')}`.toUpperCase()
}
