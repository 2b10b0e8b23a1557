/**
 * UNIX sockets that carry descriptors (SCM_RIGHTS), which Node's own sockets drop.
 *
 * A socket is bound under a private name with mode 0600 and renamed into place, so that it is never there without
 * its rights, and replaces only a socket that nobody listens on.
 */
import { lstatSync, renameSync, rmSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { setTimeout } from 'node:timers/promises'
import { Fault } from '../fault.ts'
import { asFd, check, type Fd } from './fd.ts'
import * as libc from './libc.ts'
import { closeFd, interrupt, readable, writable } from './readiness.ts'

/** sun_path holds 108 bytes with its NUL; CRIU cuts a longer path without a word (criu/img-streamer.c, 4.1.1). */
const LONGEST_PATH = 107

function sockaddr(path: string): Buffer {
  const name = Buffer.from(path)
  if (name.length > LONGEST_PATH) {
    throw new Fault('USAGE', `socket path is longer than ${LONGEST_PATH} bytes: ${path}`, {
      hint: 'use a directory with a shorter name',
    })
  }
  return unixAddress(Buffer.concat([name, Buffer.alloc(1)]))
}

/** A `struct sockaddr_un` with this name, which is a path with its NUL or an abstract name. */
export function unixAddress(name: Uint8Array): Buffer {
  const family = Buffer.alloc(2)
  family.writeUInt16LE(libc.AF_UNIX)
  return Buffer.concat([family, name])
}

/** A new UNIX socket, non-blocking and closed on exec. Throws `IO`. */
export function unixSocket(kind = libc.SOCK_STREAM): Fd {
  return asFd(check(libc.socket(libc.AF_UNIX, kind | libc.SOCK_NONBLOCK | libc.SOCK_CLOEXEC, 0), 'socket'))
}

/** A connected socket, or minus errno. */
function tryConnect(path: string): number {
  const address = sockaddr(path)
  const fd = unixSocket()
  const result = libc.connect(fd, address, address.length)
  if (result === 0) return fd
  closeFd(fd)
  return result
}

/** Connects at once. Throws `LINK` where nobody listens, and `IO` where this user may not connect. */
export function connectUnix(path: string): Fd {
  const result = tryConnect(path)
  if (result >= 0) return asFd(result)
  if (result === -libc.EACCES || result === -libc.EPERM) {
    throw new Fault('IO', `you may not connect to ${path} (${libc.errnoName(-result)})`, {
      hint: 'run this as root, or as the user whose program listens there',
    })
  }
  throw new Fault('LINK', `cannot connect to ${path} (${libc.errnoName(-result)})`, {
    hint: 'is the other end started?',
  })
}

function refuseUnlessStale(path: string): void {
  const found = lstatSync(path, { throwIfNoEntry: false })
  if (found === undefined) return
  if (!found.isSocket() || found.uid !== process.geteuid?.()) {
    throw new Fault('EXISTS', `${path} is in the way and is not a socket of ours`, { hint: 'choose another -D DIR' })
  }
  const result = tryConnect(path)
  if (result >= 0) closeFd(asFd(result))
  if (result !== -libc.ECONNREFUSED) {
    throw new Fault('EXISTS', `somebody listens on ${path} already`, { hint: 'stop it, or choose another -D DIR' })
  }
}

/**
 * A listening socket at `path`, mode 0600. `prepare` makes what those who connect will look for, and is called when
 * nobody else listens there and before anybody can connect. Throws `EXISTS` if a live listener or something else holds
 * the name, and what `prepare` throws.
 */
export function listenUnix(path: string, prepare = (): void => {}): Fd {
  sockaddr(path)
  refuseUnlessStale(path)
  const temporary = join(dirname(path), `.${process.pid.toString(36)}${basename(path).slice(-6)}`)
  const address = sockaddr(temporary)
  const fd = unixSocket()
  try {
    const umask = process.umask(0o177)
    try {
      check(libc.bind(fd, address, address.length), `cannot make a socket in ${dirname(path)}`)
    } finally {
      process.umask(umask)
    }
    check(libc.listen(fd, 16), 'listen')
    prepare()
    renameSync(temporary, path)
  } catch (error) {
    closeFd(fd)
    rmSync(temporary, { force: true })
    throw error
  }
  return fd
}

/** A daemon that has run out of descriptors goes on when others are closed. */
const OUT_OF_FDS_MS = 100

/** The next connection. Its other end must be root or our own user (SO_PEERCRED); others are closed unheard. */
export async function acceptUnix(listener: Fd): Promise<Fd> {
  for (let inVain = 0; ; ) {
    const got = accepted(listener)
    if (got === 'none') await readable(listener, inVain++)
    else if (got === 'no room') await setTimeout(OUT_OF_FDS_MS)
    else return got
  }
}

/** The same for one that waits already; undefined if there is none. */
export function acceptNow(listener: Fd): Fd | undefined {
  const got = accepted(listener)
  return typeof got === 'string' ? undefined : got
}

function accepted(listener: Fd): Fd | 'none' | 'no room' {
  for (;;) {
    const got = libc.accept4(listener, null, null, libc.SOCK_NONBLOCK | libc.SOCK_CLOEXEC)
    if (got >= 0) {
      const { uid } = credentials(asFd(got))
      if (uid === 0 || uid === process.geteuid?.()) return asFd(got)
      closeFd(asFd(got))
    } else if (got === -libc.EAGAIN) return 'none'
    else if (got === -libc.EMFILE || got === -libc.ENFILE) return 'no room'
    else if (got !== -libc.EINTR) check(got, 'accept')
  }
}

/** No bytes go out any more, or, with `both`, none come in either: whoever waits for room or for bytes is woken. */
export function shutDown(socket: Fd, both = false): void {
  libc.shutdown(socket, both ? libc.SHUT_RDWR : libc.SHUT_WR)
}

/**
 * Waits for a client's first byte; false if it left without one. A probe of `listenUnix` by another process does that,
 * and is no client.
 */
export async function hasSpoken(socket: Fd): Promise<boolean> {
  for (let inVain = 0; ; ) {
    const got = libc.recv(socket, Buffer.alloc(1), 1, libc.MSG_PEEK)
    if (got >= 0) return got > 0
    if (got === -libc.EAGAIN) await readable(socket, inVain++)
    else if (got === -libc.ECONNRESET) return false
    else if (got !== -libc.EINTR) check(got, 'recv')
  }
}

/** Whether bytes or the end of the stream are there to be read now. */
export function hasNews(socket: Fd): boolean {
  return libc.recv(socket, Buffer.alloc(1), 1, libc.MSG_PEEK) !== -libc.EAGAIN
}

/**
 * The next connection that says something, whoever is silent before it; the others are closed then, and nobody is heard
 * any more.
 */
export function acceptSpeaker(listener: Fd): Promise<Fd> {
  return new Promise((resolve, reject) => {
    const silent = new Set<Fd>()
    let over = false
    async function hear(socket: Fd): Promise<void> {
      silent.add(socket)
      const spoke = await hasSpoken(socket).catch(() => false)
      silent.delete(socket)
      if (over || !spoke) return closeFd(socket)
      over = true
      for (const other of [...silent, listener]) interrupt(other)
      resolve(socket)
    }
    async function listen(): Promise<void> {
      while (!over) void hear(await acceptUnix(listener))
    }
    listen().catch((reason: unknown) => {
      over = true
      for (const other of silent) interrupt(other)
      reject(reason)
    })
  })
}

function credentials(fd: Fd): { pid: number; uid: number } {
  const ucred = Buffer.alloc(12)
  check(libc.getsockopt(fd, libc.SOL_SOCKET, libc.SO_PEERCRED, ucred, new Int32Array([ucred.length])), 'getsockopt')
  return { pid: ucred.readUInt32LE(0), uid: ucred.readUInt32LE(4) }
}

/** The process that connected; 0 if it is in a pid namespace that this one cannot see. */
export function peerPid(socket: Fd): number {
  return credentials(socket).pid
}

const CMSG_HEADER = 16
/** One descriptor is expected; room for four tells "too many" from "one" without losing count. */
const MOST_FDS = 4
const MSGHDR = 56 // struct msghdr, 64-bit: name 0, namelen 8, iov 16, iovlen 24, control 32, controllen 40, flags 48
const IOVEC = 16
const CONTROL = CMSG_HEADER + 4 * MOST_FDS
const MOST_BYTES = 2 ** 10

/** A message in one block: its header, its only iovec, the control bytes, and the bytes. */
const IOVEC_AT = MSGHDR
const CONTROL_AT = MSGHDR + IOVEC

/**
 * One block for every recvmsg(2), for ever: the kernel gets addresses, which keep nothing alive, and a buffer of our
 * own for each call was seen to be collected between taking its address and the call.
 */
const block = Buffer.alloc(CONTROL_AT + CONTROL + MOST_BYTES)
const control = block.subarray(CONTROL_AT, CONTROL_AT + CONTROL)
const data = block.subarray(CONTROL_AT + CONTROL)

/** Writes the header and the iovec of a message with so many control bytes and bytes. */
function writeHead(message: Buffer, controlBytes: number, bytes: number): void {
  const base = libc.address(message)
  message.fill(0, 0, CONTROL_AT)
  message.writeBigUInt64LE(base + BigInt(IOVEC_AT), 16)
  message.writeBigUInt64LE(1n, 24)
  message.writeBigUInt64LE(base + BigInt(CONTROL_AT), 32)
  message.writeBigUInt64LE(BigInt(controlBytes), 40)
  message.writeBigUInt64LE(base + BigInt(CONTROL_AT + controlBytes), IOVEC_AT)
  message.writeBigUInt64LE(BigInt(bytes), IOVEC_AT + 8)
}

/**
 * Reads at most `into.length` bytes (and at most 1 KiB) and the descriptors that came with them. 0 bytes at the end of
 * the stream.
 */
export async function receiveWithFds(socket: Fd, into: Uint8Array): Promise<{ bytes: number; fds: Fd[] }> {
  for (let inVain = 0; ; ) {
    writeHead(block, CONTROL, Math.min(into.length, MOST_BYTES))
    const bytes = libc.recvmsg(socket, block, libc.MSG_CMSG_CLOEXEC)
    if (bytes === -libc.EAGAIN) await readable(socket, inVain++)
    else if (bytes >= 0) {
      into.set(data.subarray(0, bytes))
      return { bytes, fds: takeFds() }
    } else if (bytes !== -libc.EINTR) check(bytes, 'recvmsg')
  }
}

function takeFds(): Fd[] {
  const fds: Fd[] = []
  if (block.readBigUInt64LE(40) >= CMSG_HEADER && control.readInt32LE(12) === libc.SCM_RIGHTS) {
    const end = Number(control.readBigUInt64LE(0))
    for (let at = CMSG_HEADER; at + 4 <= end; at += 4) fds.push(asFd(control.readInt32LE(at)))
  }
  if ((block.readInt32LE(48) & libc.MSG_CTRUNC) !== 0) {
    for (const fd of fds) closeFd(fd)
    throw new Fault('CRIU_PROTOCOL', 'more descriptors in one message than allowed')
  }
  return fds
}

/** Two ends of one connection. */
export function socketPair(): [Fd, Fd] {
  const type = libc.SOCK_STREAM | libc.SOCK_NONBLOCK | libc.SOCK_CLOEXEC
  const ends = new Int32Array(2)
  check(libc.socketpair(libc.AF_UNIX, type, 0, ends), 'socketpair')
  return [asFd(ends[0] as number), asFd(ends[1] as number)]
}

/** For every sendmsg(2), for the same reason. */
const sending = Buffer.alloc(CONTROL_AT + CMSG_HEADER + 8 + 1)

/** Sends one zero byte with `fd`, which is closed here. */
export async function sendFd(socket: Fd, fd: Fd): Promise<void> {
  for (let inVain = 0; ; ) {
    writeHead(sending, CMSG_HEADER + 8, 1)
    sending.writeBigUInt64LE(BigInt(CMSG_HEADER + 4), CONTROL_AT)
    sending.writeInt32LE(libc.SOL_SOCKET, CONTROL_AT + 8)
    sending.writeInt32LE(libc.SCM_RIGHTS, CONTROL_AT + 12)
    sending.writeInt32LE(fd, CONTROL_AT + CMSG_HEADER)
    const sent = libc.sendmsg(socket, sending, libc.MSG_NOSIGNAL)
    if (sent === -libc.EAGAIN) await writable(socket, inVain++)
    else if (sent !== -libc.EINTR) {
      closeFd(fd)
      return void check(sent, 'sendmsg')
    }
  }
}
