/** What systemd does for a service of Type=notify: a UNIX datagram socket. */
import { asFd, check } from '../../lib/kernel/fd.ts'
import * as libc from '../../lib/kernel/libc.ts'
import { closeFd, readable } from '../../lib/kernel/readiness.ts'

/** Binds `name`, a path or an abstract name with `@`; `next` is the next datagram. */
export function notifySocket(name: string): { next: () => Promise<string>; close: () => void } {
  const type = libc.SOCK_DGRAM | libc.SOCK_NONBLOCK | libc.SOCK_CLOEXEC
  const fd = asFd(check(libc.socket(libc.AF_UNIX, type, 0), 'socket'))
  const address = Buffer.concat([Buffer.of(libc.AF_UNIX, 0), Buffer.from(name.replace(/^@/, '\0'))])
  check(libc.bind(fd, address, address.length), 'bind')
  return {
    async next() {
      const into = Buffer.alloc(4096)
      for (;;) {
        const got = libc.recv(fd, into, into.length, 0)
        if (got !== -libc.EAGAIN) return into.subarray(0, check(got, 'recv')).toString()
        await readable(fd)
      }
    },
    close: () => closeFd(fd),
  }
}
