/** Sockets that whoever started us has made: connected (--ps-socket) or listening (LISTEN_FDS). */
import { Fault } from '../fault.ts'
import { asFd, type Fd, setNonBlocking } from './fd.ts'
import * as libc from './libc.ts'

export interface InheritedSocket {
  fd: Fd
  /** The address of the other end, or of the listener, if it is TCP; undefined for a UNIX socket. */
  address: { host: string; port: number } | undefined
}

/**
 * The descriptor `fd` as a stream socket in that state, ours from now on and non-blocking. Throws `USAGE` if it is not.
 */
export function inheritedSocket(fd: number, state: 'connected' | 'listening'): InheritedSocket {
  const hint = `pass a ${state} stream socket on as fd ${fd}`
  const type = option(fd, libc.SO_TYPE)
  if (type < 0) throw new Fault('USAGE', `fd ${fd} is not a socket (${libc.errnoName(-type)})`, { hint })
  const address = Buffer.alloc(128)
  const length = new Int32Array([address.length])
  const get = state === 'connected' ? libc.getpeername : libc.getsockname
  const listens = option(fd, libc.SO_ACCEPTCONN) === 1
  const found = type === libc.SOCK_STREAM && listens === (state === 'listening') && get(fd, address, length) === 0
  if (!found) throw new Fault('USAGE', `fd ${fd} is not a ${state} stream socket`, { hint })
  setNonBlocking(asFd(fd))
  return { fd: asFd(fd), address: tcpAddress(address) }
}

/** The value of an option of SOL_SOCKET, or minus errno. */
function option(fd: number, name: number): number {
  const value = Buffer.alloc(4)
  const result = libc.getsockopt(fd, libc.SOL_SOCKET, name, value, new Int32Array([value.length]))
  return result < 0 ? result : value.readInt32LE(0)
}

const MAPPED_IPV4 = Buffer.from('00000000000000000000ffff', 'hex')

function tcpAddress(address: Buffer): InheritedSocket['address'] {
  const family = address.readUInt16LE(0)
  const port = address.readUInt16BE(2)
  if (family === libc.AF_INET) return { host: [...address.subarray(4, 8)].join('.'), port }
  if (family !== libc.AF_INET6) return undefined
  const bytes = address.subarray(8, 24)
  if (bytes.subarray(0, 12).equals(MAPPED_IPV4)) return { host: [...bytes.subarray(12)].join('.'), port }
  const words = Array.from({ length: 8 }, (_, at) => bytes.readUInt16BE(2 * at).toString(16)).join(':')
  // In its short form: ::1.
  return { host: new URL(`http://[${words}]`).hostname.slice(1, -1), port }
}
