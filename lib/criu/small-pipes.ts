import { newsOfSmallPipes } from '../kernel/fd.ts'
import type { Report } from '../progress.ts'

/** Tells the user, once, that larger pipes would make it faster. */
export function reportSmallPipes(report: Report): void {
  const bytes = newsOfSmallPipes()
  if (bytes !== undefined) report({ event: 'small pipes', bytes })
}
