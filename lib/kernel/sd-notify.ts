/** sd_notify(3): tells a service manager our state, in a datagram to a UNIX socket. Node has no such sockets. */
import { Fault } from '../fault.ts'
import { check } from './fd.ts'
import * as libc from './libc.ts'
import { closeFd } from './readiness.ts'
import { unixAddress, unixSocket } from './unix.ts'

/** What sun_path holds. */
const MOST_BYTES = 108

/**
 * Sends `state` (`READY=1`) to the socket that NOTIFY_SOCKET names, if it does. Throws `IO` or `LINK`, and never waits.
 */
export function notify(state: string): void {
  const name = process.env.NOTIFY_SOCKET
  if (name === undefined || name === '') return
  const address = notifyAddress(name)
  const fd = unixSocket(libc.SOCK_DGRAM)
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
  return unixAddress(bytes)
}
