/** Links over a descriptor: reads and writes are system calls on the memory that the caller gives. */
import { Fault } from '../fault.ts'
import { enlargePipe, type Fd, isPipe, settleFile } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readHeap, readSome, spliceAll, writeAll } from '../kernel/transfer.ts'
import { shutDown } from '../kernel/unix.ts'
import { filling, type Link } from './link.ts'

/**
 * A link over one descriptor that this process owns. Only a socket can be told "more follows", be closed for writing
 * alone and take bytes of a pipe by reference.
 */
export function fdLink(fd: Fd, peer: string, kind: 'socket' | 'pipe' | 'file' = isPipe(fd) ? 'pipe' : 'file'): Link {
  if (kind === 'pipe') enlargePipe(fd)
  const socket = kind === 'socket'
  let closed: Error | undefined
  // The number of a descriptor that was closed here may already belong to somebody else.
  const guarded =
    <Args extends unknown[], Result>(run: (...args: Args) => Promise<Result>) =>
    (...args: Args): Promise<Result> =>
      closed === undefined ? run(...args) : Promise.reject(closed)
  const mark = Int32Array.of(1)
  const read = guarded((into: Uint8Array) => (socket ? readHeap(fd, into, mark) : readSome(fd, into)))
  return {
    inlet: { read, fill: filling(read) },
    outlet: {
      ...(socket && { splice: guarded((pipe: Fd, bytes: number) => spliceAll(pipe, fd, bytes)) }),
      send: guarded((bytes: Uint8Array, more = false) => writeAll(fd, bytes, { more, socket })),
      settle: guarded(async (bytes: number) => {
        if (kind === 'file') settleFile(fd, bytes)
      }),
      finish: guarded(async () => {
        if (socket) shutDown(fd)
      }),
    },
    duplex: socket,
    peer,
    destroy(reason = new Fault('ABORTED', 'closed')) {
      if (closed !== undefined) return
      closed = reason
      closeFd(fd, reason)
    },
  }
}
