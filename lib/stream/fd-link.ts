import { fstatSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { check, enlargePipe, type Fd, isPipe } from '../kernel/fd.ts'
import { EOPNOTSUPP, FALLOC_FL_KEEP_SIZE, fallocate, fsync, SHUT_WR, shutdown } from '../kernel/libc.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readHeap, readSome, spliceAll, writeAll } from '../kernel/transfer.ts'
import { filling, type Inlet, type Link, type Outlet } from './link.ts'

/** What the descriptor is: only a socket can be told "more follows" and closed for writing alone. */
type Kind = 'socket' | 'pipe' | 'file'

function fdInlet(fd: Fd, kind: Kind): Inlet {
  const mark = Int32Array.of(1)
  const read = (into: Uint8Array): Promise<number> =>
    kind === 'socket' ? readHeap(fd, into, mark) : readSome(fd, into)
  return { read, fill: filling(read) }
}

function fdOutlet(fd: Fd, kind: Kind): Outlet {
  return {
    ...(kind === 'socket' ? { splice: (pipe: Fd, bytes: number) => spliceAll(pipe, fd, bytes) } : {}),
    send: (bytes, more = false) => writeAll(fd, bytes, { more, socket: kind === 'socket' }),
    async settle(bytes) {
      if (kind !== 'file') return
      const reserved = fallocate(fd, FALLOC_FL_KEEP_SIZE, fstatSync(fd).size, bytes)
      if (reserved !== -EOPNOTSUPP) check(reserved, 'write')
      check(fsync(fd), 'write')
    },
    async finish() {
      if (kind === 'socket') shutdown(fd, SHUT_WR)
    },
  }
}

/** A link over one descriptor that this process owns. */
export function fdLink(fd: Fd, peer: string, kind: Kind = isPipe(fd) ? 'pipe' : 'file'): Link {
  if (kind === 'pipe') enlargePipe(fd)
  let closed: Error | undefined
  // A number that was closed here may already belong to somebody else.
  const guarded =
    <Args extends unknown[], Result>(run: (...args: Args) => Promise<Result>) =>
    async (...args: Args): Promise<Result> => {
      if (closed !== undefined) throw closed
      return run(...args)
    }
  const inlet = fdInlet(fd, kind)
  const outlet = fdOutlet(fd, kind)
  const destroy = (reason: Error = new Fault('ABORTED', 'closed')): void => {
    if (closed !== undefined) return
    closed = reason
    closeFd(fd, reason)
  }
  return {
    inlet: { fill: guarded(inlet.fill), read: guarded(inlet.read) },
    outlet: {
      ...(outlet.splice === undefined ? {} : { splice: guarded(outlet.splice) }),
      send: guarded(outlet.send),
      settle: guarded(outlet.settle),
      finish: guarded(outlet.finish),
    },
    duplex: kind === 'socket',
    peer,
    destroy,
  }
}
