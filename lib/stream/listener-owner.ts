/**
 * Checks which user listens at the other end of a plain TCP connection. On loopback any user may listen where a cache
 * is expected, and would be sent the memory of root's processes: so nothing is sent before its owner is known.
 */
import type net from 'node:net'
import { Fault } from '../fault.ts'
import { isLoopback, socketAt } from '../kernel/tcp-owner.ts'
import { sleep } from './wait.ts'

/** The code of the error for a connection whose other end cannot be seen. */
export const NOT_SEEN = 'ENOTCONN'
/** The code of the error for a connection that is not accepted. */
export const NOT_ACCEPTED = 'it does not accept'

const LOOK_MS = 10
/** After so long another try is made: a busy host may take seconds, and a connection may be one that nobody takes. */
const ACCEPT_MS = 10_000
/** The other end may not be seen while the kernel makes the connection; after so many looks it is gone. */
const MOST_UNSEEN = 3

/**
 * Waits until the other end of `socket` is accepted by root, by our own user or by one of `uids`, for `limitMs` at
 * most. Throws `REFUSED` for another user or another host, errors with the codes `NOT_ACCEPTED` and `NOT_SEEN`, and
 * the signal's reason.
 */
export async function refuseOtherUsers(
  socket: net.Socket,
  uids: readonly number[],
  limitMs: number,
  signal: AbortSignal,
): Promise<void> {
  const { remoteAddress, remotePort = 0, localAddress = '', localPort = 0 } = socket
  if (remoteAddress === undefined) throw notSeen()
  if (!isLoopback(remoteAddress)) {
    // When the name was looked up before, it was one of this host's.
    throw new Fault('REFUSED', `plain TCP to ${remoteAddress} is neither secret nor authenticated`, {
      hint: 'use --tls or --key-file, or --insecure in a network that you trust',
    })
  }
  const theirs = { address: remoteAddress, port: remotePort }
  const ends = { theirs, ours: { address: localAddress, port: localPort } }
  const deadline = performance.now() + Math.min(limitMs, ACCEPT_MS)
  for (let unseen = 0; ; ) {
    // Asked before the look: we may have been held up ourselves.
    const isLate = performance.now() > deadline
    const owner = socketAt(ends)
    unseen = owner === 'none' ? unseen + 1 : 0
    if (unseen > MOST_UNSEEN) throw notSeen()
    // A connection that is not accepted yet has no inode, and no owner.
    if (owner !== 'none' && owner.inode !== 0) {
      if ([0, process.geteuid?.(), ...uids].includes(owner.uid)) return
      throw new Fault('REFUSED', `user ${owner.uid} of this host listens at ${remoteAddress}:${remotePort}`, {
        hint: `if it is to have the images (as its ssh -L): --allow-uid ${owner.uid}; else end that program`,
      })
    }
    if (isLate) throw Object.assign(new Error('the other end does not accept'), { code: NOT_ACCEPTED })
    await sleep(LOOK_MS, signal)
  }
}

function notSeen(): Error {
  return Object.assign(new Error('the other end is not there'), { code: NOT_SEEN })
}
