import type { Report } from '../progress.ts'
import { type Compress, checkCompress } from './compress.ts'
import type { PackOptions } from './pack.ts'
import { RateLimit } from './rate-limit.ts'

/** How images are put on the link. */
export interface Tuning extends Pick<PackOptions, 'compress' | 'limit' | 'unchecked'> {
  /** Pages that the receiver says it has are not sent. Called where it says nothing. */
  dedup?: (() => void) | undefined
}

interface Sending {
  compress: Compress | undefined
  /** Bytes a second. */
  rate: number | undefined
  unchecked: boolean
  dedup: boolean
}

/** The tuning that a user asks for; all that is sent with it shares its rate. Throws `IO` where a codec is missing. */
export function tuningOf({ compress, rate, unchecked, dedup }: Sending, report: Report = () => {}): Tuning {
  if (compress !== undefined) checkCompress(compress)
  let said = false
  const unoffered = (): void => {
    if (!said) report({ event: 'nothing offered' })
    said = true
  }
  const limit = rate === undefined ? undefined : new RateLimit(rate)
  return { compress, limit, unchecked, ...(dedup && { dedup: unoffered }) }
}
