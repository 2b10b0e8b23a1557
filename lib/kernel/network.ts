/** Network namespaces, and devices whose packets are read and written like a file. Needs root. */
import { openSync } from 'node:fs'
import { asFd, check, type Fd } from './fd.ts'
import * as libc from './libc.ts'

/** A descriptor for the network of this thread: it exists for as long as that is open. */
export function thisNetwork(): Fd {
  return asFd(openSync('/proc/thread-self/ns/net', 'r'))
}

/** Moves this thread, and what it starts from here on, into a new network without devices. Throws `IO`. */
export function newNetwork(): Fd {
  check(libc.unshare(libc.CLONE_NEWNET), 'unshare')
  return thisNetwork()
}

/** Moves this thread into another network. Throws `IO`. */
export function enterNetwork(network: Fd): void {
  check(libc.setns(network, libc.CLONE_NEWNET), 'setns')
}

const TUN = '/dev/net/tun'
/** The size of a `struct ifreq`: a name, and flags. */
const IFREQ_BYTES = 40
const IFNAMSIZ = 16
/** TUN_F_CSUM, TUN_F_TSO4: packets of up to 64 KiB come whole, with what is to be done to them. */
const LARGE = 3

/**
 * A point-to-point device of this thread's network, gone when it is closed. What it sends is read here, with a header
 * of virtio-net in front, and what is written here it receives. With `large` packets are cut where a real device would
 * cut them. Throws `IO` where there are no such devices.
 */
export function openTun(name: string, large: boolean): Fd {
  const fd = asFd(check(libc.open(TUN, libc.O_RDWR | libc.O_NONBLOCK | libc.O_CLOEXEC, 0), TUN))
  const request = Buffer.alloc(IFREQ_BYTES)
  request.write(name, 'latin1')
  request.writeUInt16LE(libc.IFF_TUN | libc.IFF_NO_PI | libc.IFF_VNET_HDR, IFNAMSIZ)
  check(libc.ioctl(fd, libc.TUNSETIFF, request), 'TUNSETIFF')
  if (large) check(libc.ioctl(fd, libc.TUNSETOFFLOAD, LARGE), 'TUNSETOFFLOAD')
  return fd
}
