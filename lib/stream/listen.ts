/** Makes a server listen. */
import type net from 'node:net'
import { Fault } from '../fault.ts'
import type { Fd } from '../kernel/fd.ts'

export interface ListenAt {
  host: string
  /** With 0 the kernel chooses. */
  port: number
  /** A listening socket that we were given; `host` and `port` are its address. */
  listener?: Fd | undefined
}

/** Listens. Resolves with the port. Throws `LINK` where that address cannot be had. */
export function listen(server: net.Server, { host, port, listener }: ListenAt): Promise<number> {
  return new Promise((resolve, reject) => {
    server.once('error', (cause: NodeJS.ErrnoException) => {
      const hint = cause.code === 'EADDRINUSE' ? 'another program listens there: choose another --port' : undefined
      reject(new Fault('LINK', `cannot listen on ${host}:${port} (${cause.code})`, { cause, ...(hint && { hint }) }))
    })
    server.listen(listener === undefined ? { host, port } : { fd: listener }, () =>
      resolve((server.address() as net.AddressInfo).port),
    )
  })
}
