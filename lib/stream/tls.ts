/**
 * TLS 1.3 for links over TCP, with a certificate at both ends or with a key that both ends have.
 *
 * A link is given out only when the other end has proved who it is; until then nothing of the wire is sent or read.
 * Peers that fail to authenticate, or take longer than 10 s, are disconnected. The files are read for every link: a
 * new certificate or a new list of revoked ones counts from the next link on, and a cache need not be stopped for it.
 */
import type net from 'node:net'
import tls from 'node:tls'
import type { Credentials } from '../credentials.ts'
import { Fault } from '../fault.ts'
import { duplicate } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { peek } from '../kernel/transfer.ts'
import type { Link } from './link.ts'
import { duplexLink, fdOf } from './node-link.ts'
import { readSecrets } from './tls-secrets.ts'
import { type Deferred, defer } from './wait.ts'

/** How long a handshake may take, however often the other end sends a byte. */
const HANDSHAKE_MS = 10_000
/**
 * Handshakes at a time, of clients whose greeting has come. When one more comes, the oldest one of the source that
 * has most is given up.
 */
const MOST_HANDSHAKES = 64

const late = `no TLS handshake within ${HANDSHAKE_MS / 1000} s`
const optionOf = (kind: Credentials['kind']): string => (kind === 'tls' ? '--tls' : '--key-file')

/** A handshake that is under way: it resolves with a link, or rejects with the reason why it failed. */
type Handshake = Deferred<Link>

/** Waits for a handshake on `raw`, which `begin` begins. When it fails, or takes too long, `raw` is destroyed. */
async function finished(handshake: Handshake, raw: net.Socket, timeout: string, begin: () => void): Promise<Link> {
  const timer = setTimeout(() => handshake.reject(new Fault('LINK', timeout)), HANDSHAKE_MS)
  raw.on('error', () => {})
  try {
    begin()
    return await handshake.promise
  } catch (reason) {
    raw.destroy()
    throw reason
  } finally {
    clearTimeout(timer)
  }
}

/**
 * Proves who we are to the cache at `host`, and the cache proves it to us. Returns when its first byte is here: in
 * TLS 1.3 only that says that it has accepted our certificate. Throws `LINK`, `USAGE` for our own files, or the
 * signal's reason.
 */
export async function secureClient(
  raw: net.Socket,
  host: string,
  peer: string,
  credentials: Credentials,
  signal: AbortSignal,
): Promise<Link> {
  const handshake: Handshake = defer()
  const stop = (): void => handshake.reject(signal.reason)
  signal.addEventListener('abort', stop)
  try {
    return await finished(handshake, raw, `${peer}: ${late}`, () => {
      signal.throwIfAborted()
      beginClient(handshake, raw, host, peer, credentials)
    })
  } finally {
    signal.removeEventListener('abort', stop)
  }
}

function beginClient(
  { resolve, reject }: Handshake,
  raw: net.Socket,
  host: string,
  peer: string,
  credentials: Credentials,
): void {
  const socket = tls.connect({ ...readSecrets(credentials).client, socket: raw, host })
  let proved = false
  const refused = (error?: Error): void => reject(clientFault(peer, credentials.kind, proved, error))
  const readable = (): void => {
    if (socket.readableLength === 0) return void socket.read()
    socket.off('readable', readable).off('end', refused).off('close', closed)
    resolve(duplexLink(socket, peer))
  }
  const closed = (): void => refused()
  socket.on('error', refused).on('end', refused).on('close', closed)
  socket.once('secureConnect', () => {
    // In TLS 1.3 a shared key is used as if it were an earlier session's.
    if (credentials.kind === 'key' && !socket.isSessionReused()) return refused(new Error('not by the key'))
    proved = true
    socket.on('readable', readable)
  })
}

/** The header of a TLS record, and the longest one of a handshake (RFC 8446, 5.1). */
const RECORD_HEADER = 5
const HANDSHAKE_RECORD = 22
const LONGEST_RECORD = RECORD_HEADER + 2 ** 14
/** Where greetings are peeked into: what is in them is no secret, and is not used. */
const greeting = Buffer.alloc(LONGEST_RECORD)

function clientLeft(): Fault {
  return new Fault('LINK', 'the client left in the TLS handshake')
}

/**
 * Waits until the client's greeting has come whole. Until then a client costs a socket and a timer: one that stalls
 * takes no handshake's place, and no TLS is begun for it. Throws `LINK`, also after `HANDSHAKE_MS`, and `IO`.
 */
async function greetingCame(raw: net.Socket): Promise<void> {
  const probe = duplicate(fdOf(raw))
  let open = true
  const close = (reason?: Error): void => {
    if (open) closeFd(probe, reason)
    open = false
  }
  const gone = (): void => close(clientLeft())
  const timer = setTimeout(() => close(new Fault('LINK', late)), HANDSHAKE_MS)
  raw.once('close', gone)
  try {
    const header = greeting.subarray(0, RECORD_HEADER)
    if ((await peek(probe, header)) < header.length) throw clientLeft()
    if (header[0] !== HANDSHAKE_RECORD) return
    const record = greeting.subarray(0, Math.min(RECORD_HEADER + header.readUInt16BE(3), LONGEST_RECORD))
    if ((await peek(probe, record)) < record.length) throw clientLeft()
  } finally {
    clearTimeout(timer)
    raw.off('close', gone)
    close()
  }
}

/** The one that has been under way for longest, of those from the source that has most. */
function oldestOfMost(underWay: ReadonlyMap<Handshake, string>): Handshake | undefined {
  const shares = new Map<string, number>()
  for (const source of underWay.values()) shares.set(source, (shares.get(source) ?? 0) + 1)
  const most = Math.max(...shares.values())
  return [...underWay].find(([, source]) => shares.get(source) === most)?.[0]
}

/**
 * Makes links of a server's clients. The function that it returns resolves with a link for a client that has proved
 * who it is; any other is disconnected, and is a `LINK` fault. A handshake counts to the share of its `source`.
 * Throws `USAGE` for our own files.
 */
export function secureServer(
  credentials: Credentials,
): (raw: net.Socket, peer: string, source: string) => Promise<Link> {
  /** With the source of each. */
  const underWay = new Map<Handshake, string>()
  return async (raw, peer, source) => {
    raw.on('error', () => {})
    try {
      await greetingCame(raw)
    } catch (error) {
      raw.destroy()
      throw error
    }
    const oldest = underWay.size >= MOST_HANDSHAKES ? oldestOfMost(underWay) : undefined
    if (oldest !== undefined) {
      underWay.delete(oldest)
      oldest.reject(new Fault('LINK', 'too many handshakes at a time'))
    }
    const handshake: Handshake = defer()
    underWay.set(handshake, source)
    const begin = (): void => beginServer(handshake, raw, peer, credentials)
    return finished(handshake, raw, late, begin).finally(() => underWay.delete(handshake))
  }
}

function beginServer({ resolve, reject }: Handshake, raw: net.Socket, peer: string, credentials: Credentials): void {
  const server = tls.createServer(readSecrets(credentials).server)
  // A client that closes in the handshake is gone, not half open.
  raw.allowHalfOpen = false
  server.on('tlsClientError', (error, socket) => reject(serverFault(credentials.kind, error, socket)))
  server.on('secureConnection', (socket) => {
    socket.allowHalfOpen = true
    // A shared key looks like an earlier session; where there are certificates, one is shown every time.
    const proved =
      credentials.kind === 'key' ? socket.isSessionReused() : socket.authorized && !socket.isSessionReused()
    if (proved) resolve(duplexLink(socket, peer))
    else reject(new Fault('LINK', 'the client proved nothing'))
  })
  server.emit('connection', raw)
}

/** An error code as words: `cert has expired`. */
function words(code: string): string {
  return code
    .replace(/^ERR_SSL_/, '')
    .toLowerCase()
    .replaceAll('_', ' ')
}

const notTls = ['ERR_SSL_WRONG_VERSION_NUMBER', 'ERR_SSL_HTTP_REQUEST', 'ERR_SSL_PACKET_LENGTH_TOO_LONG']

/** The client's fault when the cache refused it, or is not the right one. */
function clientFault(peer: string, kind: Credentials['kind'], proved: boolean, error?: Error): Fault {
  const { code = '', host } = (error ?? {}) as NodeJS.ErrnoException & { host?: string }
  const fault = (text: string, hint: string): Fault => new Fault('LINK', `${peer} ${text}`, { hint, cause: error })
  if (notTls.includes(code)) return fault('does not speak TLS', `start the cache with ${optionOf(kind)} too`)
  if ((error === undefined || code === 'ECONNRESET') && (kind === 'key' || !proved)) {
    return fault('closed the link in the TLS handshake', "the cache's log says why")
  }
  if (kind === 'key') {
    return fault('does not have our key', 'is it the same --key-file at both ends, and does the cache use one?')
  }
  if (proved || code.includes('_ALERT_')) {
    const reason = code.includes('_ALERT_') ? ` (${words(code)})` : ''
    return fault(`did not accept our certificate${reason}`, "expired, revoked, of another CA? the cache's log says it")
  }
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') {
    return fault(`has a certificate for another name than ${host}`, 'use the name that is in it as --address')
  }
  return fault(`has a certificate that is refused: ${words(code)}`, 'is it of the CA in --tls-cacert?')
}

/** The cache's fault for a client that it refused. */
function serverFault(kind: Credentials['kind'], error: Error, socket: tls.TLSSocket): Fault {
  const { code = '' } = error as NodeJS.ErrnoException
  const fault = (text: string, hint?: string): Fault => new Fault('LINK', text, { ...(hint && { hint }), cause: error })
  const refusal = socket.authorizationError as unknown
  if (refusal) return fault(`the client's certificate is refused: ${words(String(refusal))}`)
  if (notTls.includes(code)) return fault('the client does not speak TLS', `start it with ${optionOf(kind)} too`)
  if (code === 'ERR_SSL_PEER_DID_NOT_RETURN_A_CERTIFICATE') return fault('the client has no certificate')
  if (code === 'ERR_SSL_BINDER_DOES_NOT_VERIFY') return fault('the client has another key')
  if (kind === 'key' && code === 'ERR_SSL_NO_SUITABLE_SIGNATURE_ALGORITHM') return fault('the client has no key')
  if (code === 'ECONNRESET') return clientLeft()
  return fault(`the TLS handshake failed: ${words(code)}`)
}
