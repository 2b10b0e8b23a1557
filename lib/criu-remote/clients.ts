/**
 * The clients of a socket of `criu --remote`: each connects for one image. Limits how many may wait, and reports
 * failures.
 */

import { openWorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import { asFault } from '../format/refusal.ts'
import type { Fd } from '../kernel/fd.ts'
import { parentOf } from '../kernel/process.ts'
import { closeFd } from '../kernel/readiness.ts'
import { acceptNow, acceptUnix, peerPid } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'

export interface Clients {
  readonly isOpen: boolean
  /** Accepts the clients that have connected already. */
  acceptPending(): void
  /** Reports a failure, while the socket is open. */
  failed(what: string, error: unknown): void
  /** Takes the socket away. */
  close(): void
}

/** Serves a client: closes the socket in the end, and calls `answered` when the client waits for us no more. */
export type HandleClient = (socket: Fd, pid: number, answered: () => void) => Promise<void>

/** Most connections that have sent no request yet, or wait for their answer: criu has one for each image. */
const MOST_CLIENTS = 1024

/** Listens at the socket `name` in `directory`. Throws `EXISTS` or `IO`. */
export function openClients(directory: string, name: string, report: Report, handle: HandleClient): Clients {
  const { listener, remove } = openWorkDir(directory, name)
  let waiting = 0
  let isOpen = true

  const failed = (what: string, error: unknown): void =>
    void (isOpen && report({ event: 'failed', what, fault: asFault(error) }))

  function accept(socket: Fd): void {
    const what = 'a client of criu --remote'
    if (waiting >= MOST_CLIENTS) {
      closeFd(socket)
      failed(what, new Fault('LIMIT', `${MOST_CLIENTS} wait at ${name} already`))
      return
    }
    waiting++
    let isCounted = true
    const answered = (): void => {
      if (isCounted) waiting--
      isCounted = false
    }
    handle(socket, peerPid(socket), answered)
      .catch((error: unknown) => failed(what, error))
      .finally(answered)
  }

  async function listen(): Promise<never> {
    for (;;) accept(await acceptUnix(listener))
  }
  listen().catch((error: unknown) => failed(name, error))

  return {
    get isOpen() {
      return isOpen
    },
    acceptPending() {
      for (let next = acceptNow(listener); next !== undefined; next = acceptNow(listener)) accept(next)
    },
    failed,
    close() {
      isOpen = false
      remove()
    },
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
