/**
 * Where the other end is: `HOST:PORT`, `[v6]:PORT`, `tcp:HOST:PORT`, `unix:PATH`, `fd:N`, `-`.
 *
 * Names are resolved and connections made by Node; then the descriptor is taken over (dup, and Node's half closed
 * before it has read anything): reads and writes go straight to and from the memory that we choose.
 */
import { lookup } from 'node:dns/promises'
import { createReadStream, fstatSync } from 'node:fs'
import net from 'node:net'
import { setTimeout } from 'node:timers/promises'
import { isatty } from 'node:tty'
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import { allows, duplicate, type Fd, isPipe, limitUnsent, ownNonBlocking, type PipeEnd } from '../kernel/fd.ts'
import { inheritedSocket } from '../kernel/inherited.ts'
import { isLoopback, socketAt } from '../kernel/tcp-owner.ts'
import { fdLink } from './fd-link.ts'
import { type Link, spliceAllowed } from './link.ts'
import { duplexLink, fdOf, readableLink, writableLink } from './node-link.ts'
import { secureClient, secureServer } from './tls.ts'
import { readSecrets } from './tls-secrets.ts'

export type Endpoint =
  /**
   * Plain without `credentials`. `uids`: it must be on loopback, and of one of these users of this host, of root or of our own; anybody's,
   * anywhere, if undefined.
   */
  | {
      kind: 'tcp'
      host: string
      port: number
      credentials?: Credentials | undefined
      uids?: readonly number[] | undefined
    }
  | { kind: 'unix'; path: string }
  | { kind: 'fd'; fd: number }
  | { kind: 'stdio' }
  /** A socket that is connected already; `take` throws `LINK` the second time. */
  | { kind: 'inherited'; name: string; take: () => Link }

/** `credentials` are for a link over TCP; nothing else takes any. `uids`: see `Endpoint`. Throws `USAGE`. */
export function parseEndpoint(text: string, credentials?: Credentials, uids?: readonly number[]): Endpoint {
  const endpoint = parsePlain(text)
  if (endpoint.kind === 'tcp') return { ...endpoint, ...(credentials && { credentials }), ...(uids && { uids }) }
  if (credentials === undefined) return endpoint
  throw new Fault('USAGE', `${text} is no TCP link: --tls and --key-file do nothing there`, { hint: 'HOST:PORT' })
}

function parsePlain(text: string): Endpoint {
  if (text === '-') return { kind: 'stdio' }
  const [, scheme = 'tcp', rest = ''] = /^(?:(tcp|unix|fd):)?(.*)$/.exec(text) ?? []
  if (scheme === 'unix' && rest !== '') return { kind: 'unix', path: rest }
  if (scheme === 'fd' && /^\d{1,7}$/.test(rest)) return { kind: 'fd', fd: Number(rest) }
  const tcp = /^(?:\[([0-9a-fA-F:.]+(?:%\w+)?)\]|([^:/\s[\]]+)):(\d{1,5})$/.exec(scheme === 'tcp' ? rest : '')
  const port = Number(tcp?.[3])
  if (tcp === null || port < 1 || port > 65535) {
    throw new Fault('USAGE', `not an endpoint: ${text}`, { hint: 'HOST:PORT, [V6]:PORT, unix:PATH, fd:N or -' })
  }
  return { kind: 'tcp', host: tcp[1] ?? tcp[2] ?? '', port }
}

/**
 * Plain TCP carries other people's memory readable and unsigned. Throws `USAGE` for any host whose addresses are not
 * all this host's own, `LINK` for one that has none.
 */
export async function refuseOpenNetwork(host: string): Promise<void> {
  const found = await lookup(host, { all: true }).catch((cause: NodeJS.ErrnoException) => {
    throw new Fault('LINK', `cannot find the address of ${host} (${cause.code})`, { cause })
  })
  const local = found.filter(({ address }) => address === '::1' || (net.isIPv4(address) && address.startsWith('127.')))
  if (found.length > 0 && local.length === found.length) return
  throw new Fault('USAGE', `plain TCP to or from ${host} is neither secret nor authenticated`, {
    hint: 'use --tls or --key-file, or tunnel it: ssh -L 9997:127.0.0.1:9997 host',
  })
}

/**
 * Whether links to or from `host` may be made. Throws `USAGE` for credentials that cannot be used, and what
 * `refuseOpenNetwork` throws where there are none.
 */
export async function checkNetwork(
  host: string,
  credentials: Credentials | undefined,
  insecure: boolean,
): Promise<void> {
  if (credentials !== undefined) readSecrets(credentials)
  else if (!insecure) await refuseOpenNetwork(host)
}

export function formatEndpoint(endpoint: Endpoint): string {
  switch (endpoint.kind) {
    case 'tcp':
      return endpoint.host.includes(':') ? `[${endpoint.host}]:${endpoint.port}` : `${endpoint.host}:${endpoint.port}`
    case 'unix':
      return `unix:${endpoint.path}`
    case 'fd':
      return `fd:${endpoint.fd}`
    case 'stdio':
      return 'stdin'
    case 'inherited':
      return endpoint.name
  }
}

const RETRY_MS = 100
/** Even the last try gets this long for an answer. */
const LEAST_CONNECT_MS = 1000

/**
 * Connects, and tries again every 100 ms while the other end is not there yet. Throws `LINK` after `timeoutMs`, or
 * at once for what does not mend itself, such as an end that cannot prove who it is, and `REFUSED` for one of a user who may not be it. With `oneOfMany` a TCP link takes little
 * that it cannot send at once.
 */
export async function connectEndpoint(
  endpoint: Endpoint,
  timeoutMs: number,
  signal: AbortSignal,
  oneOfMany = false,
): Promise<Link> {
  const peer = formatEndpoint(endpoint)
  if (endpoint.kind === 'stdio') return inputLink(0, 'stdin')
  if (endpoint.kind === 'fd') return inputLink(endpoint.fd, peer)
  if (endpoint.kind === 'inherited') return endpoint.take()
  const deadline = performance.now() + timeoutMs
  for (;;) {
    try {
      const socket = await connectOnce(endpoint, deadline - performance.now(), signal)
      if (oneOfMany && endpoint.kind === 'tcp') limitUnsent(fdOf(socket), UNSENT_BYTES)
      if (endpoint.kind === 'unix') return linkOverSocket(socket, peer)
      if (endpoint.credentials === undefined) {
        if (endpoint.uids !== undefined) await refuseOthers(socket, endpoint.uids, signal).catch(destroying(socket))
        return linkOverSocket(socket, peer)
      }
      return await secureClient(socket, { host: endpoint.host, peer }, endpoint.credentials, signal)
    } catch (cause) {
      if (cause instanceof Fault) throw cause
      const code = (cause as NodeJS.ErrnoException).code ?? ''
      const mayCome = [
        'ECONNREFUSED',
        'ECONNRESET',
        'ENOENT',
        'ETIMEDOUT',
        'EHOSTUNREACH',
        'ENETUNREACH',
        'EAI_AGAIN',
        'ENOTCONN',
      ].includes(code)
      if (!mayCome || performance.now() + RETRY_MS > deadline) {
        throw new Fault('LINK', `cannot connect to ${peer} (${code || (cause as Error).message})`, {
          hint:
            code === 'ENOTCONN'
              ? 'its other end cannot be seen: is it in another network namespace? --insecure does not ask'
              : 'is the other end started, and is the address right?',
          cause,
        })
      }
    }
    await setTimeout(RETRY_MS, undefined, { signal }).catch(() => {
      throw signal.reason
    })
  }
}

function connectOnce(
  endpoint: Extract<Endpoint, { kind: 'tcp' | 'unix' }>,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<net.Socket> {
  return new Promise((resolve, reject) => {
    const target = endpoint.kind === 'tcp' ? { host: endpoint.host, port: endpoint.port } : { path: endpoint.path }
    const socket = net.connect({ ...target, noDelay: true, keepAlive: true, allowHalfOpen: true })
    socket.pause()
    socket.once('error', reject)
    const late = Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })
    const timer = globalThis.setTimeout(() => socket.destroy(late), Math.max(timeoutMs, LEAST_CONNECT_MS))
    const stop = (): void => void socket.destroy(signal.reason as Error)
    signal.addEventListener('abort', stop)
    socket.once('close', () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
    })
    socket.once('connect', () => {
      clearTimeout(timer)
      signal.removeEventListener('abort', stop)
      socket.off('error', reject)
      resolve(socket)
    })
  })
}

const LOOK_MS = 10
/** It may be on its way while the kernel makes the connection; after that it is gone, and another try may find it. */
const MOST_UNSEEN = 3
/** A program that listens takes a connection at once, or is stopped. */
const ACCEPT_MS = 5000

/**
 * On loopback any user may listen where a cache is expected, and would be sent the memory of root's processes: so nothing is said before it
 * is known whose the other end is. Throws `REFUSED`, and `LINK` for one that takes no connections.
 */
async function refuseOthers(socket: net.Socket, uids: readonly number[], signal: AbortSignal): Promise<void> {
  const { remoteAddress, remotePort = 0, localAddress = '', localPort = 0 } = socket
  if (remoteAddress === undefined) throw notThere()
  if (!isLoopback(remoteAddress)) {
    // Its name was one of this host's when it was looked up before.
    throw new Fault('REFUSED', `plain TCP to ${remoteAddress} is neither secret nor authenticated`, {
      hint: 'use --tls or --key-file, or --insecure in a network that you trust',
    })
  }
  const theirs = { address: remoteAddress, port: remotePort }
  const ends = { theirs, ours: { address: localAddress, port: localPort } }
  const deadline = performance.now() + ACCEPT_MS
  // Before it is accepted it is nobody's.
  for (let unseen = 0; performance.now() < deadline; ) {
    const owner = socketAt(ends)
    unseen = owner === 'none' ? unseen + 1 : 0
    if (unseen > MOST_UNSEEN) throw notThere()
    if (owner !== 'none' && owner.inode !== 0) {
      if ([0, process.geteuid?.(), ...uids].includes(owner.uid)) return
      throw new Fault('REFUSED', `user ${owner.uid} of this host listens at ${remoteAddress}:${remotePort}`, {
        hint: `if it is to have the images (as its ssh -L): --allow-uid ${owner.uid}; else end that program`,
      })
    }
    await setTimeout(LOOK_MS, undefined, { signal }).catch(() => {
      throw signal.reason
    })
  }
  throw new Fault('LINK', `it cannot be seen who listens at ${remoteAddress}:${remotePort}`, {
    hint: 'is it stopped, or in another network namespace? --insecure does not ask',
  })
}

function notThere(): Error {
  return Object.assign(new Error('the other end is not there'), { code: 'ENOTCONN' })
}

function destroying(socket: net.Socket): (reason: unknown) => never {
  return (reason) => {
    socket.destroy()
    throw reason
  }
}

/** Of one of several connections: a chunk that waits behind more than this holds up the others' (striped-link.ts). */
const UNSENT_BYTES = 128 * 2 ** 10

/** A link over a paused Node socket that has not read yet. */
export function linkOverSocket(socket: net.Socket, peer: string): Link {
  if (!spliceAllowed || fdOf(socket) < 0) return duplexLink(socket, peer)
  return fdLink(takeFd(socket), peer, 'socket')
}

/** The descriptor of a paused Node socket that has not read yet; Node's half is closed. */
export function takeFd(socket: net.Socket): Fd {
  const fd = duplicate(fdOf(socket))
  socket.on('error', () => {})
  socket.destroy()
  return fd
}

/**
 * The other end of a connected socket that we were given as descriptor `fd`, for one use. Throws `USAGE` if it is no such
 * socket, or leads to another host and may not (`insecure`).
 */
export async function inheritedEndpoint(
  fd: number,
  insecure: boolean,
): Promise<Extract<Endpoint, { kind: 'inherited' }>> {
  const socket = inheritedSocket(fd, 'connected')
  if (socket.address !== undefined && !insecure) await refuseOpenNetwork(socket.address.host)
  const name = `fd:${fd}`
  let used = false
  return {
    kind: 'inherited',
    name,
    take() {
      if (used) {
        throw new Fault('LINK', `the socket ${name} is used up: it carries one snapshot`, {
          hint: 'start another proxy',
        })
      }
      used = true
      if (spliceAllowed) return fdLink(socket.fd, name, 'socket')
      return duplexLink(new net.Socket({ fd, readable: true, writable: true, allowHalfOpen: true }), name)
    },
  }
}

/** The TCP listener that we were given as descriptor `fd`. Throws `USAGE` if it is none. */
export function inheritedListener(fd: number): { host: string; port: number; listener: Fd } {
  const socket = inheritedSocket(fd, 'listening')
  if (socket.address !== undefined) return { ...socket.address, listener: socket.fd }
  throw new Fault('USAGE', `fd ${fd} does not listen on TCP`, { hint: 'as in ListenStream=127.0.0.1:9997' })
}

/** A client of a server, for messages. */
export function peerOf(socket: net.Socket): string {
  return `${socket.remoteAddress}:${socket.remotePort}`
}

/**
 * Makes links of a server's clients; one that must prove who it is and does not is sent away. Throws `LINK`; `IO` when
 * there are no descriptors left; `USAGE` for credentials that cannot be used any more.
 */
export function linkMaker(
  credentials: Credentials | undefined,
): (socket: net.Socket, peer: string, source: string) => Promise<Link> {
  if (credentials !== undefined) return secureServer(credentials)
  return async (socket, peer) => {
    try {
      return linkOverSocket(socket, peer)
    } catch (error) {
      socket.destroy()
      throw error
    }
  }
}

/**
 * A pipe is opened anew, for whatever is asked (`ownNonBlocking`): what it was handed over for must be looked at
 * before.
 */
function checkFd(fd: number, what: PipeEnd): void {
  const hint = `open it in the shell, as in ${fd}${what === 'read' ? '<' : '>'}file`
  try {
    fstatSync(fd)
  } catch (cause) {
    throw new Fault('USAGE', `fd ${fd} is not open`, { hint, cause })
  }
  if (!allows(fd, what)) throw new Fault('USAGE', `fd ${fd} is not open to ${what}`, { hint })
}

function kindOf(fd: number): 'socket' | 'pipe' | 'file' {
  return fstatSync(fd).isSocket() ? 'socket' : isPipe(fd) ? 'pipe' : 'file'
}

/** Standard input or an inherited descriptor, to be read: a pipe, a file or a socket. */
function inputLink(fd: number, peer: string): Link {
  checkFd(fd, 'read')
  if (isatty(fd)) {
    throw new Fault('USAGE', `${peer} is a terminal`, { hint: 'pipe an image stream into this command' })
  }
  if (spliceAllowed) return { ...fdLink(ownNonBlocking(fd, 'read'), peer, kindOf(fd)), duplex: false }
  if (fd === 0) return readableLink(process.stdin, peer)
  if (fstatSync(fd).isFile()) return readableLink(createReadStream('', { fd }), peer)
  return readableLink(new net.Socket({ fd, readable: true, writable: false }), peer)
}

/** Standard output, to be written. Throws `USAGE` for a terminal. */
export function stdoutLink(): Link {
  checkFd(1, 'write')
  if (isatty(1)) {
    throw new Fault('USAGE', 'stdout is a terminal', { hint: 'redirect it to a file or pipe it, as in > app.img' })
  }
  if (fstatSync(1).isCharacterDevice()) {
    throw new Fault('USAGE', 'stdout is a device: the images would be lost', {
      hint: 'if you mean it: | cat > /dev/null',
    })
  }
  if (!spliceAllowed) return writableLink(process.stdout, 'stdout')
  return { ...fdLink(ownNonBlocking(1, 'write'), 'stdout', kindOf(1)), duplex: false }
}
