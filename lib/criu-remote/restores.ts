/**
 * The restores with `--remote` on this host: answers what `criu restore --remote` asks for from memory.
 *
 * A restore begins with the list of snapshots, looks for its own `-D` in it, and then has a connection for each image.
 * It may come before its snapshot. Its first request then waits, as these clients can, until a snapshot is sealed, and
 * gets the list that is true then; the original cache sent a short list, and the restore failed. If the dump fails the
 * restore is refused, with an error other than "no such image". A snapshot that names the `-D` of its dump
 * (local-wire.ts) is for a restore with that `-D`, any other for every restore. The list has one entry, for a stored
 * snapshot is flattened and has no parent.
 *
 * The children of a restore connect too, from pid namespaces of their own, and send the same `-D`.
 */

import type { CacheContext } from '../cache/context.ts'
import { ExternalRestore } from '../cache/external-restore.ts'
import { restoredFrom } from '../criu/command-line.ts'
import { Fault } from '../fault.ts'
import { printable } from '../format/names.ts'
import type { Fd } from '../kernel/fd.ts'
import { endOf } from '../kernel/process.ts'
import { closeFd, hungUp } from '../kernel/readiness.ts'
import type { SealedSnapshot } from '../store/snapshots.ts'
import type { Images, LostSnapshot } from '../store/waiters.ts'
import { abortWith, defer } from '../stream/wait.ts'
import { Clients, ofAncestor } from './clients.ts'
import { answerRead, idsOf, newReader, RESTORE_SOCKET, type ReadAnswer, readRequest } from './local-wire.ts'
import { EIO, protocolFault, type ReadRequest } from './messages.ts'

/** One `criu restore --remote`. */
class Restore {
  readonly pid: number
  /** Its `-D`, as soon as that is known. */
  snapshot: string | undefined
  /** Whether it has asked for the list, as each restore does once. */
  isListed = false
  /** The snapshot that it gets. */
  readonly found = defer<SealedSnapshot>()
  readonly reader = newReader()
  /** Answers that are being given to it. */
  readonly answers = new Set<Promise<void>>()
  /** Resolved when it says that it is over. */
  readonly over = defer<void>()

  constructor(pid: number, snapshot: string | undefined) {
    this.pid = pid
    this.snapshot = snapshot
  }

  /** Answers a request as soon as there is a snapshot, and closes the socket. */
  async answer(socket: Fd, request: ReadRequest, answered: () => void): Promise<void> {
    const answer = answerRead(socket, this.#find(request), this.reader, answered).finally(() =>
      this.answers.delete(answer),
    )
    this.answers.add(answer)
    await answer
  }

  async #find(request: ReadRequest): Promise<ReadAnswer | undefined> {
    const sealed = await this.found.promise.catch(() => undefined)
    if (sealed === undefined) return { error: EIO }
    if (request.kind === 'pull') return { ids: [this.snapshot ?? sealed.id] }
    const image = request.snapshot === this.snapshot ? sealed.images.get(request.name) : undefined
    return image && { image }
  }

  /** Whether a snapshot is for it, as far as its images have come. */
  fits(images: Images): boolean {
    const ids = idsOf(images)
    return this.snapshot === undefined || ids.length === 0 || ids.at(-1) === this.snapshot
  }

  /**
   * Whether a snapshot that failed was the one it waits for. One that does not name its `-D` may be, unless another
   * comes.
   */
  hasLost({ images, others }: LostSnapshot): boolean {
    const last = idsOf(images).at(-1)
    return this.snapshot === undefined || last === undefined ? !others : last === this.snapshot
  }
}

export class RemoteRestores {
  readonly #script: string
  readonly #context: CacheContext
  readonly #clients: Clients
  readonly #restores = new Set<Restore>()

  /** Listens at the socket in the cache's directory. `script`: our action script. Throws `EXISTS` or `IO`. */
  constructor(script: string, context: CacheContext) {
    this.#script = script
    this.#context = context
    const { directory, report } = context.options
    this.#clients = new Clients(directory, RESTORE_SOCKET, report, (...client) => this.#handle(...client))
  }

  close(): void {
    this.#clients.close()
    for (const restore of this.#restores) restore.over.resolve()
  }

  async #handle(socket: Fd, pid: number, answered: () => void): Promise<void> {
    let isOpen = true
    try {
      const request = await readRequest(socket)
      if (request === undefined) return
      if (request.kind === 'finish') return this.#restoreOf(pid)?.over.resolve()
      if (request.kind !== 'pull' && request.kind !== 'read') throw protocolFault('an image is written to the cache')
      const snapshot = request.kind === 'read' ? request.snapshot : restoredFrom(pid)
      let restore = this.#restoreOf(pid, snapshot)
      if (request.kind === 'pull' && (restore?.pid !== pid || restore.isListed)) {
        if (restore?.pid === pid) restore.over.resolve()
        restore = undefined
      }
      restore ??= this.#begin(pid, snapshot, socket)
      restore.isListed ||= request.kind === 'pull'
      isOpen = false
      await restore.answer(socket, request, answered)
    } finally {
      if (isOpen) closeFd(socket)
    }
  }

  #restoreOf(pid: number, snapshot?: string): Restore | undefined {
    const all = [...this.#restores].reverse()
    const found = ofAncestor(pid, (at) => all.find((restore) => restore.pid === at))
    if (found !== undefined) return found
    if (snapshot !== undefined) return all.find((restore) => restore.snapshot === snapshot)
    // A process in a pid namespace that is hidden from us: if there is one such restore, it is probably that.
    const hidden = all.filter((restore) => restore.pid === 0)
    return pid === 0 && hidden.length === 1 ? hidden[0] : undefined
  }

  /** `socket`: that of the first request. */
  #begin(pid: number, snapshot: string | undefined, socket: Fd): Restore {
    const restore = new Restore(pid, snapshot)
    this.#restores.add(restore)
    void this.#follow(restore, socket)
      .catch((error: unknown) => {
        restore.found.reject(error)
        this.#clients.failed(`a restore of ${printable(restore.snapshot ?? 'criu --remote')}`, error)
      })
      .finally(() => this.#restores.delete(restore))
    return restore
  }

  /** Follows a restore from its first request to its end. */
  async #follow(restore: Restore, socket: Fd): Promise<void> {
    const { pid, reader } = restore
    const external = new ExternalRestore(pid, this.#context)
    try {
      external.hold(this.#script)
      const what = `a snapshot for ${printable(restore.snapshot ?? 'criu --remote')}`
      const found = await external.choose(what, (early) => this.#find(restore, socket, early))
      restore.snapshot ??= idsOf(found.images).at(-1) ?? found.id
      restore.found.resolve(found)
      await Promise.race([restore.over.promise, endOf(pid, external.criu)])
      await external.finish()
      await Promise.allSettled(restore.answers)
      external.reportServed(reader)
    } finally {
      external.close()
    }
  }

  /** Waits for the snapshot of a restore; stops when its first request hangs up. */
  #find(restore: Restore, socket: Fd, early: boolean): Promise<SealedSnapshot> {
    const { snapshots, options } = this.#context
    const { id, timeoutMs } = options
    const gone = hungUp(socket)
    const stop = new AbortController()
    const unlink = abortWith(stop, options.signal)
    const left = (): void => stop.abort(new Fault('LINK', 'the restore left before its snapshot was here'))
    gone.happened.then(left, () => {})
    const fits = (images: Images): boolean => restore.fits(images)
    const lost = (failed: LostSnapshot): boolean => (id !== undefined ? failed.id === id : restore.hasLost(failed))
    return snapshots.find(id, timeoutMs, stop.signal, { early, fits, lost }).finally(() => {
      gone.forget()
      unlink()
    })
  }
}
