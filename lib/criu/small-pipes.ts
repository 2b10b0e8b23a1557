import { newsOfSmallPipes } from '../kernel/fd.ts'
import type { Report } from '../progress.ts'

/** Reports once that pipes could not be enlarged, which slows dumps down. */
export function reportSmallPipes(report: Report): void {
  const bytes = newsOfSmallPipes()
  if (bytes !== undefined) report({ event: 'small pipes', bytes })
}
