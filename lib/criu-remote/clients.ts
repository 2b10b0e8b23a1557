/** Those who connect to a socket of `criu --remote`, an image each: how many may wait at a time, and whose failures are told. */

import { openWorkDir } from '../criu/work-directory.ts'
import { Fault } from '../fault.ts'
import { asFault } from '../format/refusal.ts'
import type { Fd } from '../kernel/fd.ts'
import { closeFd } from '../kernel/readiness.ts'
import { acceptNow, acceptUnix, peerPid } from '../kernel/unix.ts'
import type { Report } from '../progress.ts'

export interface Clients {
  readonly areHeard: boolean
  /** Hears those who have connected already. */
  takeAll(): void
  /** Says what went wrong, as long as somebody is heard. */
  failed(what: string, error: unknown): void
  /** Nobody else is heard. */
  close(): void
}

/** Closes the socket at some time, and calls `answered` when nobody waits there any more. */
export type HandleClient = (socket: Fd, pid: number, answered: () => void) => Promise<void>

/** Connections at a time that have not said yet what they are for, or wait for their answer: criu has one an image. */
const MOST_CLIENTS = 1024

/** Offers a socket of that name in `directory`. Throws `EXISTS` or `IO`. */
export function openClients(directory: string, name: string, report: Report, hear: HandleClient): Clients {
  const { listener, remove } = openWorkDir(directory, name)
  let waiting = 0
  let open = true

  const failed = (what: string, error: unknown): void =>
    void (open && report({ event: 'failed', what, fault: asFault(error) }))

  function take(socket: Fd): void {
    const what = 'a client of criu --remote'
    if (waiting >= MOST_CLIENTS) {
      closeFd(socket)
      failed(what, new Fault('LIMIT', `${MOST_CLIENTS} wait at ${name} already`))
      return
    }
    waiting++
    let counted = true
    const answered = (): void => {
      if (counted) waiting--
      counted = false
    }
    hear(socket, peerPid(socket), answered)
      .catch((error: unknown) => failed(what, error))
      .finally(answered)
  }

  async function listen(): Promise<never> {
    for (;;) take(await acceptUnix(listener))
  }
  listen().catch((error: unknown) => failed(name, error))

  return {
    get areHeard() {
      return open
    },
    takeAll() {
      for (let next = acceptNow(listener); next !== undefined; next = acceptNow(listener)) take(next)
    },
    failed,
    close() {
      open = false
      remove()
    },
  }
}
