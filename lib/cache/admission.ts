/**
 * Who may speak on a server's port where nothing has to be proved: on loopback root, our own user, and those who were
 * named. The port carries the memory of root's processes, and any user of this host can connect to it. From another host nobody
 * comes to a port without credentials unless it was asked for (`--insecure`), and then everybody may.
 */
import type net from 'node:net'
import { Fault } from '../fault.ts'
import type { Frame } from '../format/frame.ts'
import { encodePreamble } from '../format/preamble.ts'
import { encodeFrame } from '../format/wire.ts'
import { isLoopback, type Loopback, ownerOf } from '../kernel/tcp-owner.ts'

export interface Admission {
  /** Whose share of the connections it counts to: a user of this host, or an address. */
  source: string
  /** Why it may not speak. */
  refusal: Fault | undefined
}

/** The two ends of a connection, as Node's sockets tell them. */
type Ends = Partial<Record<'remoteAddress' | 'localAddress', string | undefined>> &
  Partial<Record<'remotePort' | 'localPort', number | undefined>>

/**
 * `uids`: users of this host who may speak beside root and our own; undefined for everybody. Then nobody else may, whatever address
 * he comes from: to loopback a user can connect from any address of his host.
 */
export function admissionOf(ends: Ends, uids: readonly number[] | undefined): Admission {
  const { remoteAddress = '', remotePort = 0, localAddress = '', localPort = 0 } = ends
  const within = isLoopback(remoteAddress) || isLoopback(localAddress)
  if (uids === undefined && !within) return { source: sourceOf(remoteAddress), refusal: undefined }
  const uid = uidOf({
    theirs: { address: remoteAddress, port: remotePort },
    ours: { address: localAddress, port: localPort },
  })
  const source = uid === undefined ? 'users who have gone' : `user ${uid}`
  if (uids === undefined || (uid !== undefined && [0, process.geteuid?.(), ...uids].includes(uid))) {
    return { source, refusal: undefined }
  }
  return { source, refusal: refused(uid) }
}

/** How long one that may not speak has to read why. */
const LINGER_MS = 5000

/** Says why, and closes. What the client has sent is not looked at. */
export async function turnAway(socket: net.Socket, { message: reason }: Fault): Promise<void> {
  const words: Frame[] = [{ type: 'hello' }, { type: 'refused', code: 'REFUSED', reason }]
  const closed = new Promise<void>((resolve) => void socket.once('close', () => resolve()))
  const timer = setTimeout(() => socket.destroy(), LINGER_MS)
  socket.on('error', () => {})
  // Closing over unread bytes would reset the connection before the client has read why.
  socket.resume()
  socket.end(Buffer.concat([encodePreamble(), ...words.map((frame) => encodeFrame(frame))]))
  await closed
  clearTimeout(timer)
}

/** Undefined where it cannot be seen: the client has gone, or no descriptor is left to look with. */
function uidOf(ends: Loopback): number | undefined {
  try {
    return ownerOf(ends)?.uid
  } catch {
    return undefined
  }
}

function refused(uid: number | undefined): Fault {
  if (uid === undefined) return new Fault('REFUSED', 'it cannot be seen which user of this host connected')
  return new Fault('REFUSED', `user ${uid} of this host may not speak here without --allow-uid ${uid} at this end`, {
    hint: `start this command with --allow-uid ${uid}, or with --tls or --key-file; --insecure lets everybody in`,
  })
}

/** Of IPv6 a host may choose the lower half. */
function sourceOf(address: string): string {
  if (!address.includes(':') || address.toLowerCase().startsWith('::ffff:')) return address
  const [head = '', tail = ''] = address.split('::')
  const [before, after] = [head.split(':').filter(Boolean), tail.split(':').filter(Boolean)]
  const gap = new Array<string>(Math.max(0, 8 - before.length - after.length)).fill('0')
  const words = address.includes('::') ? [...before, ...gap, ...after] : before
  return `${words.slice(0, 4).join(':')}::/64`
}
