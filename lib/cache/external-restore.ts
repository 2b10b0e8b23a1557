/** A `criu restore` that somebody else started in the cache's work directory. */
import { readlinkSync, realpathSync } from 'node:fs'
import { resolve } from 'node:path'
import { closedGate, type Gate } from '../criu/action-script.ts'
import { serve } from '../criu/serve.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import { asFault } from '../format/refusal.ts'
import type { Fd } from '../kernel/fd.ts'
import { commandLine, openProcess } from '../kernel/process.ts'
import { peerPid } from '../kernel/unix.ts'
import type { Piece } from '../store/memory.ts'
import type { Sealed } from '../store/snapshots.ts'
import type { Lead } from './handovers.ts'
import type { House } from './server.ts'

/** Serves it. One that has our action script can be held, and so may come before the verdict. Reports what fails. */
export async function serveCriu(socket: Fd, script: string, { shelf, arrivals, options }: House): Promise<void> {
  const { id, timeoutMs, report, directory } = options
  const criu = openProcess(peerPid(socket))
  let gate: Gate | undefined
  let found: Sealed | undefined
  let lead: Lead | undefined
  let done = (): void => {}
  let begun = performance.now()
  let early = false
  const choose = async (): Promise<Sealed['images']> => {
    if (found !== undefined) return found.images
    arrivals.refuseIfRunning(id)
    if (!shelf.has(id)) report({ event: 'waiting', what: id ?? 'the newest snapshot' })
    const next = await shelf.find(id, timeoutMs, undefined, { early: gate !== undefined })
    lead = arrivals.lead(next.id, gate, criu)
    found = next
    done = found.use()
    // An archive stays, for whoever asks next.
    const state = arrivals.get(next.id)?.state
    early = options.releaseEarly && gate !== undefined && (state === 'restoring' || state === 'reviving')
    begun = performance.now()
    return found.images
  }
  const onTaken = (piece: Piece): void => {
    if (early) found?.release(piece)
  }
  try {
    if (criu !== undefined && runsScript(criu.pid, script)) gate = closedGate(directory, criu.pid, 'post-restore')
    const served = await serve(socket, choose, { onTaken }).finally(() => lead?.finish())
    const ms = performance.now() - begun
    reportSmallPipes(report)
    if (found !== undefined) {
      report({ event: 'served', id: found.id, images: served.images.length, bytes: served.bytes, ms })
    }
  } catch (error) {
    const what = found === undefined ? 'a restore' : `the restore of ${found.id}`
    report({ event: 'failed', what, fault: asFault(error) })
  } finally {
    done()
    gate?.remove()
    criu?.close()
  }
}

/** Whether the process has this action script on its command line. */
export function runsScript(pid: number, script: string): boolean {
  const words = commandLine(pid).map((word) => word.replace(/^--action-script=/, ''))
  try {
    const from = readlinkSync(`/proc/${pid}/cwd`)
    return words.some((word) => [resolve(from, word), withoutLinks(resolve(from, word))].includes(script))
  } catch {
    return false
  }
}

function withoutLinks(path: string): string | undefined {
  try {
    return realpathSync(path)
  } catch {
    return undefined
  }
}
