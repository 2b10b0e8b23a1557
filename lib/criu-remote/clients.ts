/**
 * The clients of a socket of `criu --remote`: each connects for one image. Limits how many may wait, and reports
 * failures.
 */
import { openWorkDir, type WorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import { asFault } from '../format/refusal.ts'
import type { Fd } from '../kernel/fd.ts'
import { parentOf } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { acceptNow, acceptUnix, peerPid } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'

/** Serves a client: closes the socket in the end, and calls `answered` when the client waits for us no more. */
export type HandleClient = (socket: Fd, pid: number, answered: () => void) => Promise<void>

/** Most connections that have sent no request yet, or wait for their answer: criu has one for each image. */
const MOST_CLIENTS = 1024

export class Clients {
  readonly #name: string
  readonly #report: Report
  readonly #handle: HandleClient
  readonly #work: WorkDir
  /** Clients that have got no answer yet. */
  #waiting = 0
  /** Until `close`. */
  isOpen = true

  /** Listens at the socket `name` in `directory`. Throws `EXISTS` or `IO`. */
  constructor(directory: string, name: string, report: Report, handle: HandleClient) {
    this.#name = name
    this.#report = report
    this.#handle = handle
    this.#work = openWorkDir(directory, name)
    this.#listen().catch((error: unknown) => this.failed(name, error))
  }

  /** Accepts the clients that have connected already. */
  acceptPending(): void {
    const { listener } = this.#work
    for (let next = acceptNow(listener); next !== undefined; next = acceptNow(listener)) this.#accept(next)
  }

  /** Reports a failure, while the socket is open. */
  failed(what: string, error: unknown): void {
    if (this.isOpen) this.#report({ event: 'failed', what, fault: asFault(error) })
  }

  /** Takes the socket away. */
  close(): void {
    this.isOpen = false
    this.#work.remove()
  }

  async #listen(): Promise<never> {
    for (;;) this.#accept(await acceptUnix(this.#work.listener))
  }

  #accept(socket: Fd): void {
    const what = 'a client of criu --remote'
    if (this.#waiting >= MOST_CLIENTS) {
      closeFd(socket)
      this.failed(what, new Fault('LIMIT', `${MOST_CLIENTS} wait at ${this.#name} already`))
      return
    }
    this.#waiting++
    let isCounted = true
    const answered = (): void => {
      if (isCounted) this.#waiting--
      isCounted = false
    }
    this.#handle(socket, peerPid(socket), answered)
      .catch((error: unknown) => this.failed(what, error))
      .finally(answered)
  }
}

/** What `find` finds for the process `pid`, or for the nearest of its ancestors. */
export function ofAncestor<Found>(pid: number, find: (pid: number) => Found | undefined): Found | undefined {
  for (let at = pid; at > 0; at = parentOf(at) ?? 0) {
    const found = find(at)
    if (found !== undefined) return found
  }
  return undefined
}
