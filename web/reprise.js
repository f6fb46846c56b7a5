// Reprise in ComfyUI's frontend: adds a view to each node that has results to show.

import { app } from "../../scripts/app.js";
import * as parm from "./parm.js";
import * as reflection from "./reflection.js";
import * as rewriter from "./rewriter.js";
import * as scorer from "./scorer.js";

const VIEWS = {
  RepriseRewriter: rewriter,
  RepriseRefiner: rewriter,
  RepriseParmBestOfN: parm,
  RepriseParmBestOfNAdvanced: parm,
  RepriseRewardScorer: scorer,
  RepriseReflectionLoop: reflection,
};

app.registerExtension({
  name: "reprise",
  nodeCreated(node) {
    VIEWS[node.comfyClass]?.extend(node);
  },
});
