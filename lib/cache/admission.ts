/**
 * Decides who may use a server's port that asks for no credentials: on loopback root, our own user, and the users that
 * the operator named. The port carries the memory of root's processes, and every user of this host can connect to it.
 * Other hosts cannot reach a port without credentials unless the operator asked for that (`--insecure`); then everybody
 * may use it.
 */
import { Fault } from '../fault.ts'
import { isLoopback, type Loopback, ownerOf } from '../kernel/tcp-owner.ts'

export interface Admission {
  /** The user of this host, or the address, to whose share of the connections it counts. */
  origin: string
  /** Why the connection is refused; undefined if it is admitted. */
  refusal: Fault | undefined
}

/** The two ends of a connection, as Node's sockets name them. */
type Ends = Partial<Record<'remoteAddress' | 'localAddress', string | undefined>> &
  Partial<Record<'remotePort' | 'localPort', number | undefined>>

/**
 * `uids`: users of this host who may connect, beside root and our own; undefined admits everybody. With a list nobody
 * else is admitted, from whatever address: a user can connect to loopback from any address of this host.
 */
export function admissionOf(ends: Ends, uids: readonly number[] | undefined): Admission {
  const { remoteAddress = '', remotePort = 0, localAddress = '', localPort = 0 } = ends
  const isLocal = isLoopback(remoteAddress) || isLoopback(localAddress)
  if (uids === undefined && !isLocal) return { origin: originOf(remoteAddress), refusal: undefined }
  const theirs = { address: remoteAddress, port: remotePort }
  const uid = uidOf({ theirs, ours: { address: localAddress, port: localPort } })
  const origin = uid === undefined ? 'users who have gone' : `user ${uid}`
  const isAdmitted = uids === undefined || (uid !== undefined && [0, process.geteuid?.(), ...uids].includes(uid))
  return { origin, refusal: isAdmitted ? undefined : refused(uid) }
}

/** Undefined where the owner cannot be seen: the client has gone, or we have no descriptor left for the look-up. */
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

/** An IPv4 address, or the upper half of an IPv6 address: a host may choose the lower half as it likes. */
function originOf(address: string): string {
  if (!address.includes(':') || address.toLowerCase().startsWith('::ffff:')) return address
  const [head = '', tail = ''] = address.split('::')
  const [before, after] = [head.split(':').filter(Boolean), tail.split(':').filter(Boolean)]
  const gap = new Array<string>(Math.max(0, 8 - before.length - after.length)).fill('0')
  const words = address.includes('::') ? [...before, ...gap, ...after] : before
  return `${words.slice(0, 4).join(':')}::/64`
}
