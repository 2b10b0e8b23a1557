/**
 * The image-proxy's end of the wire of `criu --remote`: a criu that dumps to us, sent to an image-cache of that time (`--wire criu-remote`).
 *
 * Such a cache takes one connection, and is over with its end: so a dump and all rounds before it share one, which waits between them.
 * The cache never answers. So the tasks are let go when our kernel has taken all bytes for it but the last image, and nobody can say whether they have
 * arrived. Nor is there a verdict that could take a dump back: its tasks must be dead before inventory.img goes, for criu may still fail. That image
 * is some bytes of what a connection that breaks in this moment would lose anyway.
 */
import { join } from 'node:path'
import { closedGate } from '../criu/action-script.ts'
import type { CriuCommand } from '../criu/command-line.ts'
import { runsScript } from '../criu/command-line.ts'
import { type WatchedTree, watchTree } from '../criu/process-tree.ts'
import { reportSmallPipes } from '../criu/small-pipes.ts'
import { Fault } from '../fault.ts'
import { INVENTORY, printable } from '../format/names.ts'
import { tasksRunOnFault } from '../handover/outcome.ts'
import { onFirstImage } from '../handover/source.ts'
import { openProcess } from '../kernel/process.ts'
import type { Delivery } from '../precopy/delivery.ts'
import { type PreCopyChain, pagesOf } from '../precopy/send-round.ts'
import { memorySnapshot } from '../store/memory.ts'
import { openPool } from '../store/pool.ts'
import { openCriuTimeout } from '../stream/criu-timeout.ts'
import type { Endpoint } from '../stream/endpoint.ts'
import { defer, rejectWhenAborted } from '../stream/wait.ts'
import { openRemoteLine, type RemoteLine } from './cache-link.ts'
import { LONGEST_STRING } from './messages.ts'
import { sendDump } from './send-dump.ts'

export interface RemoteDelivery {
  cache: Endpoint
  /** Most bytes of memory for images that are not sent yet. */
  maxMemory: number
  /** The snapshot id of what comes by the stream; the `-D` of the criu that dumps if undefined. */
  snapshot: string | undefined
  /** How long the cache may be out of reach, or take nothing; how long criu may say nothing. */
  timeoutMs: number
}

function checkSnapshot(text: string): void {
  const bytes = Buffer.byteLength(text)
  if (bytes > 0 && bytes <= LONGEST_STRING) return
  throw new Fault('USAGE', `snapshot id refused: ${printable(text)}`, { hint: 'the -D of the criu that restores' })
}

/** Throws `USAGE` for what cannot be the id of a snapshot. */
export function remoteDelivery({ cache, maxMemory, snapshot, timeoutMs }: RemoteDelivery): Delivery {
  if (snapshot !== undefined) checkSnapshot(snapshot)
  const pool = openPool(maxMemory)
  /** Of chains whose dump is still to come. */
  const lines = new Map<PreCopyChain, RemoteLine>()

  /** Who takes it closes it. */
  function takeLine(chain: PreCopyChain | undefined): RemoteLine {
    const held = chain && lines.get(chain)
    if (chain !== undefined) lines.delete(chain)
    return held ?? openRemoteLine(cache, timeoutMs)
  }

  return {
    timeoutMs,
    async dump(criu, { command, snapshots, chain }, { directory, report, signal, onBytes }) {
      const begun = performance.now()
      const gate = closedGate(directory, criu.pid, 'post-dump')
      const line = takeLine(chain)
      const task = openProcess(criu.pid)
      let atGate = false
      const whenHeld = gate.held.then(() => {
        atGate = true
      })
      whenHeld.catch(() => {})
      const heedNoMore = line.heed(signal)
      let tree: WatchedTree | undefined
      const waitsForUs = runsScript(criu.pid, join(directory, 'post-dump'))
      const goesOn = defer<void>()
      const complete = Promise.race([whenHeld, goesOn.promise])
      const source = onFirstImage(criu.images({ complete, taken: async () => {}, answered() {} }), () => {
        tree = watchTree(criu.pid)
      })
      const memory = memorySnapshot(pool)
      const silent = new AbortController()
      const silence = openCriuTimeout(timeoutMs, (reason) => {
        if (tree?.isDying()) silence.heard()
        else if (memory.images.has(INVENTORY) && !waitsForUs) goesOn.resolve()
        else silent.abort(reason)
      })
      const heedNoSilence = line.heed(silent.signal)
      try {
        if (criu.bytes !== undefined) {
          silence.during(Promise.all([line.connected, memory.reserve(criu.bytes)])).then(criu.open, () => {})
        }
        const ids = snapshots ?? [snapshot ?? idOf(command)]
        const id = ids.at(-1) as string
        const sent = await sendDump(line.outlet, memory, source, {
          snapshot: id,
          before: ids.slice(0, -1),
          silence,
          signal: line.signal,
          onBytes,
          onTaken() {
            // Where it does not wait for us it kills the tasks now, and a signal comes too late.
            if (!atGate) heedNoMore()
          },
          async confirm() {
            if (criu.bytes !== undefined && !atGate) throw unfinished()
            line.signal.throwIfAborted()
            if (atGate) {
              // From here on what happens to the tasks decides, and a signal comes too late.
              heedNoMore()
              gate.open()
              // Its script must find the gate open, and not gone.
              await task?.ended
            }
            if (command?.leaves === true) return
            // A dump that failed has its inventory.img too, where it failed late enough.
            if ((await Promise.race([tree?.fate, rejectWhenAborted(line.signal)])) === 'alive') throw tasksRunOnFault()
          },
        })
        await line.finish()
        const ms = performance.now() - begun
        report({ event: 'sent', id, images: sent.images.length, bytes: sent.bytes, ms, verified: false })
        return true
      } catch (error) {
        gate.shut()
        source.destroy(error as Error)
        throw line.reasonOf(error)
      } finally {
        silence.close()
        heedNoSilence()
        heedNoMore()
        gate.remove()
        criu.remove()
        task?.close()
        tree?.close()
        memory.drop()
        // Whoever restores there waits until the stream ends; after a failure it finds no inventory.img.
        await line.close()
        reportSmallPipes(report)
      }
    },

    async round(chain, source, { snapshots }, { signal, onBytes }) {
      const begun = performance.now()
      const line = takeLine(chain)
      const heedNoMore = line.heed(signal)
      const silent = new AbortController()
      const silence = openCriuTimeout(timeoutMs, (reason) => silent.abort(reason))
      const heedNoSilence = line.heed(silent.signal)
      const memory = memorySnapshot(pool)
      try {
        const options = { snapshot: snapshots.at(-1) as string, round: true, silence, signal: line.signal, onBytes }
        const sent = await sendDump(line.outlet, memory, source, options)
        line.signal.throwIfAborted()
        chain.under++
        lines.set(chain, line)
        return { pages: pagesOf(sent), ms: performance.now() - begun }
      } catch (error) {
        const reason = line.reasonOf(error)
        await line.close()
        throw reason
      } finally {
        silence.close()
        heedNoSilence()
        heedNoMore()
        memory.drop()
      }
    },

    async abandon(chain) {
      if (lines.has(chain)) await takeLine(chain).close()
    },

    // Such a cache takes no verdicts.
    recover: () => [],
  }
}

function idOf(command: CriuCommand | undefined): string {
  if (command !== undefined) return command.images
  throw new Fault('CRIU', 'cannot see the -D of this criu, by which a restore finds its images', {
    hint: 'run this command in the pid namespace of that criu, or add --snapshot DIR',
  })
}

function unfinished(): Fault {
  return new Fault('FAILED_DUMP', 'criu did not come to its post-dump: the dump did not finish', {
    hint: "the process was not moved; see the dump's own log",
  })
}
