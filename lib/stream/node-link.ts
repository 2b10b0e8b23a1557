/** Links over Node's streams. */
import type net from 'node:net'
import type { Duplex, Readable, Writable } from 'node:stream'
import { Fault } from '../fault.ts'
import { filling, type Inlet, type Link, type Outlet } from './link.ts'

/** `LINK` where the other end went away, `IO` otherwise. */
function linkFault(cause: unknown): Fault {
  if (cause instanceof Fault) return cause
  const { syscall = 'link', code = 'closed' } = (cause ?? {}) as NodeJS.ErrnoException
  if (code.startsWith('ERR_SSL_')) return new Fault('LINK', `TLS: the link was changed or cut (${code})`, { cause })
  const gone = ['EPIPE', 'ECONNRESET', 'closed'].includes(code)
  return new Fault(gone ? 'LINK' : 'IO', `${syscall}: ${gone ? `the other end went away (${code})` : code}`, { cause })
}

function readableInlet(stream: Readable): Inlet {
  // An error before the first read would end the process; the next read reports it.
  stream.on('error', () => {})
  const chunks: AsyncIterator<Buffer> = stream.iterator({ destroyOnReturn: false })
  let chunk: Buffer = Buffer.alloc(0)
  async function read(into: Uint8Array): Promise<number> {
    while (chunk.length === 0) {
      const next = await chunks.next().catch((error: unknown) => {
        throw linkFault(error)
      })
      if (next.done === true) return 0
      chunk = next.value
    }
    const part = chunk.subarray(0, into.length)
    into.set(part)
    chunk = chunk.subarray(part.length)
    return part.length
  }
  return { read, fill: filling(read) }
}

function writableOutlet(stream: Writable): Outlet {
  // Without a listener an error between two writes would end the process; the next write reports it.
  stream.on('error', () => {})
  const settled = (run: (done: (error?: Error | null) => void) => void): Promise<void> =>
    new Promise((resolve, reject) => {
      const closed = (): void => reject(linkFault(stream.errored))
      stream.once('close', closed)
      run((error) => {
        stream.off('close', closed)
        if (error === undefined || error === null) resolve()
        else reject(linkFault(error))
      })
    })
  return {
    send: (bytes) => settled((done) => stream.write(bytes, done)),
    finish: () => settled((done) => stream.end(done)),
  }
}

/** The descriptor of one of Node's sockets, or -1. */
export function fdOf(socket: net.Socket): number {
  return (socket as net.Socket & { _handle?: { fd?: number } })._handle?.fd ?? -1
}

const nothing: Inlet & Outlet = {
  fill: async () => false,
  read: async () => 0,
  send: async () => {
    throw new Error('this link only receives')
  },
  finish: async () => {},
}

/** Through Node's streams, for FERRY_NO_SPLICE=1 and where there is no descriptor; otherwise as `fdLink`. */
export function duplexLink(stream: Duplex, peer: string): Link {
  return streamLink(stream, peer, { inlet: readableInlet(stream), outlet: writableOutlet(stream), duplex: true })
}

/** A link that only brings bytes. */
export function readableLink(stream: Readable, peer: string): Link {
  return streamLink(stream, peer, { inlet: readableInlet(stream), outlet: nothing, duplex: false })
}

/** A link that only takes bytes. */
export function writableLink(stream: Writable, peer: string): Link {
  return streamLink(stream, peer, { inlet: nothing, outlet: writableOutlet(stream), duplex: false })
}

function streamLink(stream: Readable | Writable, peer: string, ends: Pick<Link, 'inlet' | 'outlet' | 'duplex'>): Link {
  return { ...ends, peer, destroy: (reason) => void stream.destroy(reason) }
}
