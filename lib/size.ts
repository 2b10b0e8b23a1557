import { Fault } from './fault.ts'

const unit = { '': 1, k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 } as const

/** Bytes from `512`, `64k`, `1.5G`: suffixes are 1024-based, a trailing `B` or `iB` is accepted. Throws `USAGE`. */
export function parseSize(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(?:([kmgt])(?:i?b)?|b)?$/i.exec(text)
  const factor = unit[(match?.[2] ?? '').toLowerCase() as keyof typeof unit]
  const bytes = match === null ? Number.NaN : Math.floor(Number(match[1]) * factor)
  if (!Number.isSafeInteger(bytes)) {
    throw new Fault('USAGE', `not a size: ${text}`, { hint: 'a number with k, M or G, as in 512M' })
  }
  return bytes
}

/** `1.50 GiB` for people; three significant digits. */
export function formatSize(bytes: number): string {
  let value = bytes
  let name = 'B'
  for (const next of ['KiB', 'MiB', 'GiB', 'TiB']) {
    if (value < 1024) break
    value /= 1024
    name = next
  }
  return `${name === 'B' || value >= 100 ? Math.round(value) : value.toPrecision(3)} ${name}`
}
