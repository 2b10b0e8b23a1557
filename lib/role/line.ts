/** What a hand-over is spoken over at the source: one link, or a conversation that outlives its links. */
import { Fault } from '../fault.ts'
import type { SnapshotId } from '../format/names.ts'
import type { Until } from '../format/words.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from '../stream/frames.ts'
import type { Link, Outlet } from '../stream/link.ts'
import { resumingSender } from '../stream/resuming-sender.ts'

export interface Line {
  /** When there is a link. */
  reader: Promise<FrameReader>
  writer: FrameWriter
  /** The target was told what comes, and has said hello. */
  greeted: boolean
  /** Whoever waits for the target in order to send waits no more. */
  cut(reason: Error): void
  destroy(reason?: Error): void
}

/** One link. `stop` is aborted when the target takes nothing for `timeoutMs`: the tasks are frozen meanwhile. */
export function oneLink(connecting: Promise<Link>, timeoutMs: number, stop: AbortController): Line {
  const destroy = (reason?: Error): void => void connecting.then((link) => link.destroy(reason)).catch(() => {})
  return {
    reader: connecting.then((link) => frameReader(link.inlet)),
    writer: frameWriter(whenConnected(connecting, timeoutMs, stop)),
    greeted: false,
    cut: destroy,
    destroy,
  }
}

/** A conversation that goes on over a new link where one broke, which `connect` makes. */
export function manyLinks(
  id: SnapshotId,
  token: Buffer,
  until: Until,
  connect: (signal: AbortSignal) => Promise<Link>,
  timeoutMs: number,
): Line {
  const { link, acknowledged, stop } = resumingSender({ id, token, until, connect, timeoutMs })
  return {
    reader: Promise.resolve(frameReader(link.inlet, { onGot: acknowledged, started: true })),
    writer: frameWriter(link.outlet, true),
    greeted: true,
    cut: stop,
    destroy: (reason) => link.destroy(reason),
  }
}

/** CRIU is read from before the target is there: what fits into its pipes does not wait to be read. */
export function whenConnected(connecting: Promise<Link>, timeoutMs: number, stop: AbortController): Outlet {
  return {
    async send(bytes, more) {
      const { outlet } = await connecting
      const stuck = new Fault('TIMEOUT', `the target took nothing for ${timeoutMs / 1000} s`)
      const timer = globalThis.setTimeout(() => stop.abort(stuck), timeoutMs)
      await outlet.send(bytes, more).finally(() => clearTimeout(timer))
    },
    settle: async () => {},
    finish: async () => (await connecting).outlet.finish(),
  }
}
