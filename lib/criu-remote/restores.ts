/**
 * Those who restore with `--remote` on this host: what `criu restore --remote` asks for, answered from memory.
 *
 * A restore begins with the list of snapshots, looks for its own `-D` in it, and then has a connection for each image. It may come before its snapshot:
 * then its first question waits, which these clients can, until a snapshot is sealed, and gets the list that is true then. Upstream it got a short one and
 * failed. If the dump fails it is refused, with an error that is not "no such image". How a snapshot came does not matter: one that says
 * where it was dumped (remote.ts) is for a restore with that `-D`, any other for everybody. The list has one entry, for what is here is
 * flattened and has no parent.
 *
 * Its children have connections too, in pid namespaces of their own, and say the same `-D` in each.
 */

import type { CacheContext } from '../cache/context.ts'
import { closedGate, type Gate } from '../criu/action-script.ts'
import { restoredFrom, runsScript } from '../criu/command-line.ts'
import type { Served } from '../criu/serve.ts'
import { Fault } from '../fault.ts'
import { printable } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { endOf, openProcess, parentOf } from '../kernel/process.ts'
import { closeFd, hungUp } from '../kernel/readiness.ts'
import { writeAll } from '../kernel/transfer.ts'
import type { SealedSnapshot } from '../store/snapshots.ts'
import type { Images, LostSnapshot } from '../store/waiters.ts'
import { defer } from '../stream/wait.ts'
import { openClients } from './clients.ts'
import {
  encodeIds,
  giveImage,
  idsOf,
  RESTORE_SOCKET,
  type Reader,
  readFirstWord,
  reply,
  unexpectedRequest,
} from './local-wire.ts'
import { ENOENT, type RemoteRequest } from './messages.ts'

export interface RemoteRestores {
  close(): void
}

interface Restore {
  readonly pid: number
  /** It has asked for the list, which each does once. */
  listed: boolean
  /** Its `-D`, as soon as that is known. */
  snapshot: string | undefined
  readonly found: Promise<SealedSnapshot>
  readonly reader: Reader
  readonly served: Served
  /** Images that it gets now. */
  readonly giving: Set<Promise<void>>
  /** It says that it is over, or has ended. */
  over(): void
}

/** Any errno but that of a missing image makes criu give up. */
const EIO = 5

/** Offers the socket. `script`: our action script. Throws `EXISTS` or `IO`. */
export function openRemoteRestores(script: string, { snapshots, handovers, options }: CacheContext): RemoteRestores {
  const { directory, id, timeoutMs, report } = options
  const restores = new Set<Restore>()
  const clients = openClients(directory, RESTORE_SOCKET, report, hear)

  function restoreOf(pid: number, snapshot?: string): Restore | undefined {
    const all = [...restores].reverse()
    for (let at = pid; at > 0; at = parentOf(at) ?? 0) {
      const found = all.find((restore) => restore.pid === at)
      if (found !== undefined) return found
    }
    if (snapshot !== undefined) return all.find((restore) => restore.snapshot === snapshot)
    // Of a pid namespace that is hidden from us: whose word it is can only be guessed, where there is one.
    const hidden = all.filter((restore) => restore.pid === 0)
    return pid === 0 && hidden.length === 1 ? hidden[0] : undefined
  }

  /** `socket`: of its first question. */
  function begin(pid: number, snapshot: string | undefined, socket: Fd): Restore {
    const [over, found] = [defer<void>(), defer<SealedSnapshot>()]
    const restore: Restore = {
      pid,
      listed: false,
      snapshot,
      found: found.promise,
      reader: { form: undefined },
      served: { images: [], bytes: 0 },
      giving: new Set(),
      over: () => over.resolve(),
    }
    restores.add(restore)
    void follow(restore, socket, found.resolve, over.promise)
      .catch((error: unknown) => {
        found.reject(error)
        clients.failed(`a restore of ${printable(restore.snapshot ?? 'criu --remote')}`, error)
      })
      .finally(() => restores.delete(restore))
    return restore
  }

  /** From its first question to its end. */
  async function follow(restore: Restore, socket: Fd, know: (found: SealedSnapshot) => void, over: Promise<void>) {
    const { pid, served } = restore
    const criu = openProcess(pid)
    let gate: Gate | undefined
    let done = (): void => {}
    try {
      if (criu !== undefined && runsScript(pid, script)) gate = closedGate(directory, pid, 'post-restore')
      handovers.refuseIfRunning(id)
      const found = await choose(restore, socket, gate !== undefined)
      const lead = handovers.admit(found.id, gate, criu)
      done = found.use()
      const begun = performance.now()
      restore.snapshot ??= idsOf(found.images).at(-1) ?? found.id
      know(found)
      await Promise.race([over, endOf(pid, criu)])
      await lead.finish()
      await Promise.allSettled(restore.giving)
      const ms = performance.now() - begun
      report({ event: 'served', id: found.id, images: served.images.length, bytes: served.bytes, ms })
    } finally {
      done()
      gate?.remove()
      criu?.close()
    }
  }

  async function choose({ snapshot }: Restore, socket: Fd, early: boolean): Promise<SealedSnapshot> {
    const fits = (images: Images): boolean => {
      const ids = idsOf(images)
      return snapshot === undefined || ids.length === 0 || ids.at(-1) === snapshot
    }
    /** One that has not said where it was dumped may be ours, unless another one comes. */
    const lost = ({ id: failed, images, others }: LostSnapshot): boolean => {
      if (id !== undefined) return failed === id
      const last = idsOf(images).at(-1)
      return snapshot === undefined || last === undefined ? !others : last === snapshot
    }
    const gone = hungUp(socket)
    const stop = new AbortController()
    gone.happened.then(
      () => stop.abort(new Fault('LINK', 'the restore left before its snapshot was here')),
      () => {},
    )
    if (!snapshots.has(id))
      report({ event: 'waiting', what: id ?? `a snapshot for ${printable(snapshot ?? 'criu --remote')}` })
    const waiting = AbortSignal.any([stop.signal, options.signal])
    return snapshots.find(id, timeoutMs, waiting, { early, fits, lost }).finally(gone.forget)
  }

  async function hear(socket: Fd, pid: number, answered: () => void): Promise<void> {
    let ours = true
    try {
      const request = await readFirstWord(socket)
      if (request === undefined) return
      if (request.kind === 'finish') return restoreOf(pid)?.over()
      if (request.kind !== 'pull' && request.kind !== 'read')
        throw unexpectedRequest('an image is written to the cache')
      const snapshot = request.kind === 'read' ? request.snapshot : restoredFrom(pid)
      let restore = restoreOf(pid, snapshot)
      if (request.kind === 'pull' && (restore?.pid !== pid || restore.listed)) {
        if (restore?.pid === pid) restore.over()
        restore = undefined
      }
      restore ??= begin(pid, snapshot, socket)
      restore.listed ||= request.kind === 'pull'
      ours = false
      const giving = give(socket, request, restore, answered).finally(() => restore.giving.delete(giving))
      restore.giving.add(giving)
      await giving
    } finally {
      if (ours) closeFd(socket)
    }
  }

  return {
    close() {
      clients.close()
      for (const restore of restores) restore.over()
    },
  }
}

/** Answers, when there is a snapshot, and closes the socket. */
async function give(
  socket: Fd,
  request: Extract<RemoteRequest, { kind: 'read' | 'pull' }>,
  restore: Restore,
  answered: () => void,
): Promise<void> {
  const { reader, served } = restore
  let ours = true
  try {
    const sealed = await restore.found.catch(() => undefined)
    if (sealed === undefined) return await reply(socket, EIO)
    if (request.kind === 'pull') {
      await reply(socket, 0)
      return await writeAll(socket, encodeIds([restore.snapshot ?? sealed.id]), { socket: true })
    }
    const image = request.snapshot === restore.snapshot ? sealed.images.get(request.name) : undefined
    await reply(socket, image === undefined ? ENOENT : 0)
    answered()
    if (image === undefined) return
    ours = false
    await giveImage(socket, image, reader, served)
  } finally {
    if (ours) closeFd(socket)
  }
}
