/** What a hand-over is spoken over at the source: one link, or a conversation that outlives its links. */
import { Fault } from '../fault.ts'
import type { Until } from '../format/enums.ts'
import type { SnapshotId } from '../format/names.ts'
import { type FrameReader, type FrameWriter, frameReader, frameWriter } from './frames.ts'
import type { Link, Outlet } from './link.ts'
import { resumingSender } from './resuming-sender.ts'

export interface SourceLink {
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
export function singleLink(connecting: Promise<Link>, timeoutMs: number, stop: AbortController): SourceLink {
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
export function resumableLink(
  id: SnapshotId,
  token: Buffer,
  until: Until,
  connect: (signal: AbortSignal) => Promise<Link>,
  timeoutMs: number,
): SourceLink {
  const session = resumingSender({ id, token, until, connect, timeoutMs })
  const { inlet, outlet, destroy } = session.link
  const onGot = (position: number): void => session.acknowledged(position)
  return {
    reader: Promise.resolve(frameReader(inlet, { onGot, started: true })),
    writer: frameWriter(outlet, true),
    greeted: true,
    cut: (reason) => session.stop(reason),
    destroy,
  }
}

/** A link that takes as little within the time-out is slow, and not stuck. */
const LEAST_TAKEN = 64 * 2 ** 10

/** Sends; `stop` is aborted, with `TIMEOUT`, when `who` takes nothing for `timeoutMs`. */
export async function sendSteadily(
  outlet: Outlet,
  bytes: Uint8Array,
  more: boolean | undefined,
  timeoutMs: number,
  who: string,
  stop: AbortController,
): Promise<void> {
  for (let at = 0; at < bytes.length; at += LEAST_TAKEN) {
    const end = at + LEAST_TAKEN
    const stuck = (): void => stop.abort(new Fault('TIMEOUT', `${who} took nothing for ${timeoutMs / 1000} s`))
    const timer = globalThis.setTimeout(stuck, timeoutMs)
    await outlet.send(bytes.subarray(at, end), more === true || end < bytes.length).finally(() => clearTimeout(timer))
  }
}

/** CRIU is read from before the target is there: what fits into its pipes does not wait to be read. */
export function whenConnected(connecting: Promise<Link>, timeoutMs: number, stop: AbortController): Outlet {
  return {
    async send(bytes, more) {
      await sendSteadily((await connecting).outlet, bytes, more, timeoutMs, 'the target', stop)
    },
    settle: async () => {},
    finish: async () => (await connecting).outlet.finish(),
  }
}
