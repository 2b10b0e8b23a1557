import { fstatSync } from 'node:fs'
import { Fault } from '../fault.ts'
import { check, enlargePipe, type Fd, isPipe } from '../kernel/fd.ts'
import { EOPNOTSUPP, FALLOC_FL_KEEP_SIZE, fallocate, fsync, SHUT_WR, shutdown } from '../kernel/libc.ts'
import { closeFd } from '../kernel/readiness.ts'
import { readSome, writeAll } from '../kernel/transfer.ts'
import type { Inlet, Link, Outlet } from './link.ts'

/** What the descriptor is: only a socket can be told "more follows" and closed for writing alone. */
type Kind = 'socket' | 'pipe' | 'file'

function fdInlet(fd: Fd): Inlet {
  return {
    read: (into) => readSome(fd, into),
    async fill(into) {
      for (let filled = 0; filled < into.length; ) {
        const got = await readSome(fd, into.subarray(filled))
        if (got === 0) return endedAfter(filled)
        filled += got
      }
      return true
    },
  }
}

/** The stream ended after `filled` bytes of a record: false at its start, else `TRUNCATED`. */
export function endedAfter(filled: number): false {
  if (filled === 0) return false
  throw new Fault('TRUNCATED', 'the stream ended in the middle', { hint: 'the sender was stopped or the link was cut' })
}

function fdOutlet(fd: Fd, kind: Kind): Outlet {
  return {
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
  const inlet = fdInlet(fd)
  const outlet = fdOutlet(fd, kind)
  const destroy = (reason: Error = new Fault('ABORTED', 'closed')): void => {
    if (closed !== undefined) return
    closed = reason
    closeFd(fd, reason)
  }
  return {
    inlet: { fill: guarded(inlet.fill), read: guarded(inlet.read) },
    outlet: { send: guarded(outlet.send), settle: guarded(outlet.settle), finish: guarded(outlet.finish) },
    duplex: kind === 'socket',
    peer,
    destroy,
  }
}
