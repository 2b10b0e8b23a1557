/**
 * The benchmark: how long a process stands still when it is moved, ours and what a user has without us, on one machine
 * in one run. Figures of another run or another machine are never compared: on shared machines they differ by a factor
 * of two.
 */
import { closeSync, constants, ftruncateSync, writeFileSync } from 'node:fs'
import { openOwnFile } from '../kernel/own-file.ts'
import { formatSize } from '../size.ts'
import type { Endpoint } from '../stream/endpoint.ts'
import { type BenchOptions, type MoveOptions, median, race } from './interleaved-runs.ts'
import { runLink } from './link-speed.ts'
import { describeMachine } from './machine.ts'
import { plot } from './plot.ts'
import { describe, remarks, table } from './table.ts'

interface ReportOptions extends MoveOptions {
  json: boolean
  /** Where to write a chart. */
  chart: string | undefined
}

/** Returns the table, or JSON. Throws `EXISTS` where the chart's name is no file of ours, and what a race throws. */
export async function benchMoves(options: ReportOptions): Promise<string> {
  const { criu, runs, kind, children, say, json, chart } = options
  const file = chart === undefined ? undefined : openOwnFile(chart, constants.O_WRONLY | constants.O_CREAT, 0o644)
  try {
    const contenders = options.contenders.filter(({ name, missing }) => {
      const why = missing?.()
      if (why !== undefined) say(`without ${name}: ${why}`)
      return why === undefined
    })
    const machine = describeMachine(criu)
    const lanes = await race({ ...options, contenders })
    if (file !== undefined) {
      ftruncateSync(file)
      writeFileSync(file, plot(lanes, 'seconds that the process stood still'))
    }
    return json
      ? `${JSON.stringify({ machine, kind, runs, children, lanes }, null, 2)}\n`
      : `${describe(machine, kind, runs, children)}${table(lanes)}${remarks(lanes)}`
  } finally {
    if (file !== undefined) closeSync(file)
  }
}

/** Returns a line a size. */
export async function benchLink(
  endpoint: Endpoint,
  connections: number,
  { sizes, runs, kind, signal, say }: BenchOptions,
): Promise<string> {
  const lines: string[] = []
  for (const bytes of sizes) {
    const times: number[] = []
    for (let run = 0; run < runs; run++) {
      const { reserve, transfer } = await runLink(endpoint, connections, bytes, kind, signal)
      say(`memory ready after ${reserve.toFixed(3)} s, then sealed after ${transfer.toFixed(3)} s`)
      times.push(transfer)
    }
    const rate = (seconds: number): string => `${formatSize(bytes / seconds)}/s`
    const spread = `${rate(Math.max(...times))} to ${rate(Math.min(...times))}`
    lines.push(`${formatSize(bytes)} of ${kind} memory, median of ${runs}: ${rate(median(times))} (${spread})\n`)
  }
  return lines.join('')
}
