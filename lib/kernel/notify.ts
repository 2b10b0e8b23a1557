/** sd_notify(3): tells a service manager our state, in a datagram to a UNIX socket. Node has no such sockets. */
import { Fault } from '../fault.ts'
import { asFd, check } from './fd.ts'
import * as libc from './libc.ts'
import { closeFd } from './readiness.ts'

/** sun_path, and the two bytes of the family before it. */
const MOST_BYTES = 108
const FAMILY = 2

/**
 * Sends `state` (`READY=1`) to the socket that NOTIFY_SOCKET names, if it does. Throws `IO` or `LINK`, and never waits.
 */
export function notify(state: string): void {
  const name = process.env.NOTIFY_SOCKET
  if (name === undefined || name === '') return
  const address = notifyAddress(name)
  const type = libc.SOCK_DGRAM | libc.SOCK_NONBLOCK | libc.SOCK_CLOEXEC
  const fd = asFd(check(libc.socket(libc.AF_UNIX, type, 0), 'socket'))
  try {
    check(libc.connect(fd, address, address.length), `cannot connect to ${name}`)
    const bytes = Buffer.from(state)
    check(libc.send(fd, bytes, bytes.length, libc.MSG_NOSIGNAL), `cannot send to ${name}`)
  } finally {
    closeFd(fd)
  }
}

/** A path, or an abstract name, which begins with `@` in text and with NUL in the kernel. */
function notifyAddress(name: string): Buffer {
  const bytes = Buffer.from(name)
  if (!/^[/@]/.test(name) || bytes.length >= MOST_BYTES) throw new Fault('IO', `NOTIFY_SOCKET is no socket: ${name}`)
  if (name.startsWith('@')) bytes[0] = 0
  const address = Buffer.alloc(FAMILY + bytes.length)
  address.writeUInt16LE(libc.AF_UNIX, 0)
  bytes.copy(address, FAMILY)
  return address
}
