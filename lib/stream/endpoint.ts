/**
 * Endpoints, and links to them: `HOST:PORT`, `[v6]:PORT`, `tcp:HOST:PORT`, `unix:PATH`, `fd:N`, `-`.
 *
 * Node resolves names and makes connections; then we take the descriptor over (dup, and close Node's half before it has
 * read anything): reads and writes go straight to and from the memory that we choose.
 */
import { lookup } from 'node:dns/promises'
import { once } from 'node:events'
import { createReadStream, fstatSync } from 'node:fs'
import net from 'node:net'
import { isatty } from 'node:tty'
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import { allows, duplicate, type Fd, isPipe, limitUnsent, ownNonBlocking, type PipeEnd } from '../kernel/fd.ts'
import { inheritedSocket } from '../kernel/inherited.ts'
import { fdLink } from './fd-link.ts'
import { type Link, spliceAllowed } from './link.ts'
import type { ListenAt } from './listen.ts'
import { NOT_ACCEPTED, NOT_SEEN, refuseOtherUsers } from './listener-owner.ts'
import { duplexLink, fdOf, readableLink, writableLink } from './node-link.ts'
import { secureClient, secureServer } from './tls.ts'
import { readSecrets } from './tls-secrets.ts'
import { sleep } from './wait.ts'

export type Endpoint = TcpEndpoint | UnixEndpoint | InheritedEndpoint | { kind: 'fd'; fd: number } | { kind: 'stdio' }

/**
 * Plain without `credentials`. With `uids` the listener must be on loopback, and belong to one of these users of this
 * host, to root or to our own user.
 */
interface TcpEndpoint {
  kind: 'tcp'
  host: string
  port: number
  credentials?: Credentials | undefined
  uids?: readonly number[] | undefined
}

type UnixEndpoint = { kind: 'unix'; path: string }

/** A socket that is connected already; `take` throws `LINK` the second time. */
type InheritedEndpoint = { kind: 'inherited'; name: string; take: () => Link }

/**
 * Reads an endpoint; `credentials` and `uids` are as in `Endpoint`. Throws `USAGE`, also for credentials that are not
 * for TCP.
 */
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
 * Plain TCP carries other people's memory readable and unsigned. Throws `USAGE` unless all addresses of `host` are on
 * loopback, `LINK` where it has none.
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
 * Checks that links to or from `host` may be made. Throws `USAGE` for credentials that cannot be used; without any it
 * throws as `refuseOpenNetwork` does, unless `insecure` is set.
 */
export async function checkNetwork(
  host: string,
  credentials: Credentials | undefined,
  insecure: boolean,
): Promise<void> {
  if (credentials !== undefined) readSecrets(credentials)
  else if (!insecure) await refuseOpenNetwork(host)
}

/** The same text that `parseEndpoint` reads, for messages; `stdin` for `-`. */
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

/** The other end may not be there yet, or the connection was lost before it was used: another try may succeed. */
const retried: readonly unknown[] = [
  'ECONNREFUSED',
  'ECONNRESET',
  'ENOENT',
  'ETIMEDOUT',
  'EHOSTUNREACH',
  'ENETUNREACH',
  'EAI_AGAIN',
  NOT_SEEN,
  NOT_ACCEPTED,
]

/**
 * Connects, and tries again every 100 ms while the other end is not there yet. Throws `LINK` after `timeoutMs`, or at
 * once where another try would fail too, as with an end that cannot prove who it is; `REFUSED` for an end of a user
 * who may not be it; and the signal's reason. With `oneOfMany` a TCP link takes little that it cannot send at once.
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
      const socket = await connectSocket(endpoint, deadline - performance.now(), signal)
      if (endpoint.kind === 'unix') return linkOverSocket(socket, peer)
      if (oneOfMany) limitUnsent(fdOf(socket), UNSENT_BYTES)
      return await trustedLink(socket, endpoint, peer, Math.max(deadline - performance.now(), LEAST_CONNECT_MS), signal)
    } catch (cause) {
      if (cause instanceof Fault) throw cause
      signal.throwIfAborted()
      const { code } = cause as NodeJS.ErrnoException
      if (!retried.includes(code) || performance.now() + RETRY_MS > deadline) throw connectFault(peer, cause as Error)
    }
    await sleep(RETRY_MS, signal)
  }
}

const connectHints: Partial<Record<string, string>> = {
  [NOT_SEEN]: 'its other end cannot be seen: is it in another network namespace? --insecure does not ask',
  [NOT_ACCEPTED]: 'is it stopped? --insecure does not ask who it is',
}

function connectFault(peer: string, cause: NodeJS.ErrnoException): Fault {
  return new Fault('LINK', `cannot connect to ${peer} (${cause.code || cause.message})`, {
    hint: connectHints[cause.code ?? ''] ?? 'is the other end started, and is the address right?',
    cause,
  })
}

async function connectSocket(
  endpoint: TcpEndpoint | UnixEndpoint,
  timeoutMs: number,
  signal: AbortSignal,
): Promise<net.Socket> {
  const target = endpoint.kind === 'tcp' ? { host: endpoint.host, port: endpoint.port } : { path: endpoint.path }
  const socket = net.connect({ ...target, noDelay: true, keepAlive: true, allowHalfOpen: true })
  socket.pause()
  socket.on('error', () => {})
  const late = Object.assign(new Error('no answer'), { code: 'ETIMEDOUT' })
  const timer = setTimeout(() => socket.destroy(late), Math.max(timeoutMs, LEAST_CONNECT_MS))
  try {
    await once(socket, 'connect', { signal })
    return socket
  } catch (reason) {
    socket.destroy()
    throw reason
  } finally {
    clearTimeout(timer)
  }
}

/** Secure where there are credentials; else the listener must be of one of `uids`, if any are given. */
async function trustedLink(
  socket: net.Socket,
  { host, credentials, uids }: TcpEndpoint,
  peer: string,
  limitMs: number,
  signal: AbortSignal,
): Promise<Link> {
  if (credentials !== undefined) return secureClient(socket, host, peer, credentials, signal)
  try {
    if (uids !== undefined) await refuseOtherUsers(socket, uids, limitMs, signal)
  } catch (reason) {
    socket.destroy()
    throw reason
  }
  return linkOverSocket(socket, peer)
}

/**
 * Most unsent bytes of one of several connections: a chunk that waits behind more holds up all others
 * (striped-link.ts).
 */
const UNSENT_BYTES = 128 * 2 ** 10

/** A link over a paused Node socket that has not read yet. */
export function linkOverSocket(socket: net.Socket, peer: string): Link {
  if (!spliceAllowed || fdOf(socket) < 0) return duplexLink(socket, peer)
  return fdLink(takeFd(socket), peer, 'socket')
}

/**
 * The descriptor of a paused Node socket that has not read yet. Node's half is closed, even if this throws: `IO` where
 * there are no descriptors left.
 */
export function takeFd(socket: net.Socket): Fd {
  socket.on('error', () => {})
  try {
    return duplicate(fdOf(socket))
  } finally {
    socket.destroy()
  }
}

/**
 * The other end of a connected socket that we were given as descriptor `fd`, for one use. Throws `USAGE` if it is no
 * such socket, or leads to another host and `insecure` does not allow that.
 */
export async function inheritedEndpoint(fd: number, insecure: boolean): Promise<InheritedEndpoint> {
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
export function inheritedListener(fd: number): ListenAt {
  const socket = inheritedSocket(fd, 'listening')
  if (socket.address !== undefined) return { ...socket.address, listener: socket.fd }
  throw new Fault('USAGE', `fd ${fd} does not listen on TCP`, { hint: 'as in ListenStream=127.0.0.1:9997' })
}

/** A client of a server, for messages. */
export function peerOf(socket: net.Socket): string {
  return `${socket.remoteAddress}:${socket.remotePort}`
}

/**
 * Makes links of a server's clients. With credentials a client that does not prove who it is, is disconnected. The
 * function that it returns throws `LINK`; `IO` when there are no descriptors left; `USAGE` for credentials that
 * cannot be used any more.
 */
export function linkMaker(
  credentials: Credentials | undefined,
): (socket: net.Socket, peer: string, source: string) => Promise<Link> {
  if (credentials !== undefined) return secureServer(credentials)
  return async (socket, peer) => linkOverSocket(socket, peer)
}

/**
 * Throws `USAGE` where the descriptor was not handed over for reading, or writing. This must be checked first: a pipe
 * is opened anew in whatever direction is asked (`ownNonBlocking`).
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
