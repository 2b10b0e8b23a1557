/** Options of the commands that send images. */
import { Fault } from '../fault.ts'
import { parseSize } from '../size.ts'
import { oneOf } from './values.ts'

export const sendingOptions = {
  compress: { type: 'string', default: 'none' },
  'rate-limit': { type: 'string' },
  'no-checksum': { type: 'boolean', default: false },
} as const

export const sendingHelp = `      --compress HOW   none (the default), zstd, lz4, or auto: whichever pays on this
                       link, and none where the link is fast or memory does not shrink
      --rate-limit SZ  send at most SZ bytes a second, as in 50M
      --no-checksum    compare only sizes: damage goes unnoticed`

const ways = ['none', 'auto', 'zstd', 'lz4'] as const
const LEAST_RATE = 64 * 2 ** 10

/** What the options ask for. */
export interface Sending {
  compress: Exclude<(typeof ways)[number], 'none'> | undefined
  /** Bytes a second. */
  rate: number | undefined
  unchecked: boolean
}

/** Throws `USAGE`. */
export function sendingOf(values: {
  compress: string
  'rate-limit'?: string | undefined
  'no-checksum': boolean
}): Sending {
  const way = oneOf('--compress', values.compress, ways)
  const limit = values['rate-limit']
  const rate = limit === undefined ? undefined : parseSize(limit)
  if (rate !== undefined && rate < LEAST_RATE) {
    throw new Fault('USAGE', `--rate-limit ${limit} is less than 64k`, { hint: 'bytes a second, as in 50M' })
  }
  return { compress: way === 'none' ? undefined : way, rate, unchecked: values['no-checksum'] }
}
