"""A family of transformers after the other, each as the network that its head model is, in a small size.

A family is small by the names of the fields of its configuration (`benchmarks.coverage.shrink`). Those of `PLAIN` need
nothing else; the tables of the three other files change fields, and say what a forward takes.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from benchmarks.coverage import transformers_mixed, transformers_pictures, transformers_texts
from benchmarks.coverage.registry import Network, made
from benchmarks.coverage.shrink import small_config
from benchmarks.coverage.transformers_parts import IDS, Table

_TARGET = ("ids", 100, 2, 6)
INPUTS: dict[str, dict[str, Any]] = {
    "text": {"input_ids": IDS},
    "text to text": {"input_ids": IDS, "decoder_input_ids": _TARGET},
    "text and picture": {"input_ids": IDS, "pixel_values": ("uniform", 2, 3, 32, 32)},
    "picture": {"pixel_values": ("uniform", 2, 3, 32, 32)},
    "large picture": {"pixel_values": ("uniform", 2, 3, 64, 64)},
    "sound": {"input_values": (2, 4000)},
    "sound to text": {"input_values": (2, 4000), "decoder_input_ids": _TARGET},
    "spectrum": {"input_features": (2, 64, 80)},
    "spectrum to text": {"input_features": (2, 64, 80), "decoder_input_ids": _TARGET},
}

# What a network takes: families, each with the class of its network.
PLAIN = {
    "text": """
        afmoe:AfmoeForCausalLM albert:AlbertForSequenceClassification apertus:ApertusForCausalLM
        apertus1p5_text:Apertus1p5TextForCausalLM arcee:ArceeForCausalLM aria_text:AriaTextForCausalLM
        axk1:AXK1ForCausalLM axk2:AXK2ForCausalLM beam:BeamForCausalLM bert:BertForSequenceClassification
        bert-generation:BertGenerationDecoder big_bird:BigBirdForSequenceClassification biogpt:BioGptForCausalLM
        bitnet:BitNetForCausalLM bloom:BloomForCausalLM camembert:CamembertForSequenceClassification
        clip_text_model:CLIPTextModel codegen:CodeGenForCausalLM cohere:CohereForCausalLM cohere2:Cohere2ForCausalLM
        cohere2_moe:Cohere2MoeForCausalLM convbert:ConvBertForSequenceClassification cpmant:CpmAntForCausalLM
        cwm:CwmForCausalLM data2vec-text:Data2VecTextForSequenceClassification
        deberta:DebertaForSequenceClassification deberta-v2:DebertaV2ForSequenceClassification
        deepseek_v3:DeepseekV3ForCausalLM deepseek_v32:DeepseekV32ForCausalLM deepseek_v4:DeepseekV4ForCausalLM
        diffllama:DiffLlamaForCausalLM doge:DogeForCausalLM dory:DoryForCausalLM dpr:DPRQuestionEncoder
        electra:ElectraForSequenceClassification embedding_gemma2_text:EmbeddingGemma2TextModel
        ernie:ErnieForSequenceClassification ernie4_5:Ernie4_5ForCausalLM eurobert:EuroBertForSequenceClassification
        exaone4:Exaone4ForCausalLM exaone_moe:ExaoneMoeForCausalLM falcon:FalconForCausalLM
        falcon_h1:FalconH1ForCausalLM falcon_mamba:FalconMambaForCausalLM flaubert:FlaubertForSequenceClassification
        flex_olmo:FlexOlmoForCausalLM flint:FlintForCausalLM fnet:FNetForSequenceClassification
        funnel:FunnelForSequenceClassification gemma:GemmaForCausalLM gemma2:Gemma2ForCausalLM
        gemma3_text:Gemma3ForCausalLM gemma4_text:Gemma4ForCausalLM gemma4_unified_text:Gemma4UnifiedForCausalLM
        glm:GlmForCausalLM glm4:Glm4ForCausalLM glm4_moe:Glm4MoeForCausalLM glm4_moe_lite:Glm4MoeLiteForCausalLM
        glm_moe_dsa:GlmMoeDsaForCausalLM gpt2:GPT2LMHeadModel gpt_bigcode:GPTBigCodeForCausalLM
        gpt_neox:GPTNeoXForCausalLM gpt_neox_japanese:GPTNeoXJapaneseForCausalLM gpt_oss:GptOssForCausalLM
        gptj:GPTJForCausalLM granite:GraniteForCausalLM granite_docling_text:GraniteDoclingTextModel
        granite_swa:GraniteSWAForCausalLM granitemoe:GraniteMoeForCausalLM granitemoe_swa:GraniteMoeSWAForCausalLM
        granitemoeshared:GraniteMoeSharedForCausalLM gte:GteForSequenceClassification helium:HeliumForCausalLM
        hrm_text:HrmTextForCausalLM hy_v3:HYV3ForCausalLM hy_v4:HYV4ForCausalLM hyperclovax:HyperCLOVAXForCausalLM
        ibert:IBertForSequenceClassification imagegpt:ImageGPTForImageClassification inkling_text:InklingForCausalLM
        jais2:Jais2ForCausalLM jetmoe:JetMoeForCausalLM jina_embeddings_v3:JinaEmbeddingsV3ForSequenceClassification
        kolibri1:Kolibri1ForCausalLM laguna:LagunaForCausalLM lara_mini:LaraMiniForCausalLM
        layoutlm:LayoutLMForSequenceClassification lfm2:Lfm2ForCausalLM llama4_text:Llama4ForCausalLM
        longformer:LongformerForSequenceClassification luke:LukeForSequenceClassification mamba:MambaForCausalLM
        megatron-bert:MegatronBertForSequenceClassification mellum:MellumForCausalLM
        mimo_v2_flash:MiMoV2FlashForCausalLM minicpm3:MiniCPM3ForCausalLM minimax:MiniMaxForCausalLM
        minimax_m2:MiniMaxM2ForCausalLM minimax_m3_vl_text:MiniMaxM3VLForCausalLM ministral3:Ministral3ForCausalLM
        mistral:MistralForCausalLM mistral_large4_text:MistralLarge4TextModel mixtral:MixtralForCausalLM
        mllama:MllamaForCausalLM mobilebert:MobileBertForSequenceClassification
        modernbert:ModernBertForSequenceClassification modernbert-decoder:ModernBertDecoderForCausalLM
        molmo2_text:Molmo2TextModel moshi:MoshiForCausalLM mpnet:MPNetForSequenceClassification mpt:MptForCausalLM
        mra:MraForSequenceClassification muse_glimmer_text:MuseGlimmerTextModel nanochat:NanoChatForCausalLM
        nemotron_h:NemotronHForCausalLM nomic_bert:NomicBertForSequenceClassification
        nystromformer:NystromformerForSequenceClassification olmo:OlmoForCausalLM olmo2:Olmo2ForCausalLM
        olmo3:Olmo3ForCausalLM olmo_hybrid:OlmoHybridForCausalLM olmoe:OlmoeForCausalLM
        openai-gpt:OpenAIGPTLMHeadModel openai_privacy_filter:OpenAIPrivacyFilterForTokenClassification
        opt:OPTForCausalLM persimmon:PersimmonForCausalLM phi:PhiForCausalLM phi3:Phi3ForCausalLM
        phimoe:PhimoeForCausalLM qwen2:Qwen2ForCausalLM qwen2_moe:Qwen2MoeForCausalLM qwen3:Qwen3ForCausalLM
        qwen3_moe:Qwen3MoeForCausalLM qwen3_vl_moe_text:Qwen3VLMoeTextModel qwen3_vl_text:Qwen3VLTextModel
        rembert:RemBertForSequenceClassification roberta:RobertaForSequenceClassification
        roberta-prelayernorm:RobertaPreLayerNormForSequenceClassification roformer:RoFormerForSequenceClassification
        rwkv:RwkvForCausalLM sam3_lite_text_text_model:Sam3LiteTextTextModel seed_oss:SeedOssForCausalLM
        smollm3:SmolLM3ForCausalLM solar_open:SolarOpenForCausalLM splinter:SplinterForQuestionAnswering
        squeezebert:SqueezeBertForSequenceClassification stablelm:StableLmForCausalLM starcoder2:Starcoder2ForCausalLM
        tapas:TapasForSequenceClassification tipsv2_text_model:Tipsv2TextModel trocr:TrOCRForCausalLM
        ultrabert:UltrabertForSequenceClassification vaultgemma:VaultGemmaForCausalLM visual_bert:VisualBertModel
        xglm:XGLMForCausalLM xlm:XLMForSequenceClassification xlm-roberta:XLMRobertaForSequenceClassification
        xlm-roberta-xl:XLMRobertaXLForSequenceClassification xlnet:XLNetLMHeadModel yoso:YosoForSequenceClassification
        youtu:YoutuForCausalLM zaya:ZayaForCausalLM llama:LlamaForCausalLM
    """,
    "text and picture": """
        aimv2:Aimv2Model altclip:AltCLIPModel bridgetower:BridgeTowerModel chinese_clip:ChineseCLIPModel
        clip:CLIPModel clipseg:CLIPSegModel groupvit:GroupViTModel metaclip_2:MetaClip2Model
        owlv2:Owlv2ForObjectDetection owlvit:OwlViTForObjectDetection sam3:Sam3Model sam3_lite_text:Sam3LiteTextModel
        siglip:SiglipModel tipsv2:Tipsv2Model vilt:ViltForQuestionAnswering
        vision-text-dual-encoder:VisionTextDualEncoderModel
    """,
    "picture": """
        aimv2_vision_model:Aimv2VisionModel beit:BeitForImageClassification
        chinese_clip_vision_model:ChineseCLIPVisionModel clip_vision_model:CLIPVisionModel
        convnext:ConvNextForImageClassification convnextv2:ConvNextV2ForImageClassification
        data2vec-vision:Data2VecVisionForImageClassification deit:DeiTForImageClassification
        dinov2:Dinov2ForImageClassification dinov2_with_registers:Dinov2WithRegistersForImageClassification
        dinov3_vit:DINOv3ViTModel granite_docling_vision:GraniteDoclingVisionModel
        idefics3_vision:Idefics3VisionTransformer ijepa:IJepaForImageClassification
        internvl_vision:InternVLVisionModel mlcd_vision_model:MLCDVisionModel pixio:PixioModel
        pixtral:PixtralVisionModel qianfan_ocr_vision:QianfanOCRVisionModel sam3_vision_model:Sam3VisionModel
        sam3_vit_model:Sam3ViTModel sam_hq_vision_model:SamHQVisionModel sam_vision_model:SamVisionModel
        sapiens2:Sapiens2Model siglip_vision_model:SiglipVisionModel smolvlm_vision:SmolVLMVisionTransformer
        tipsv2_vision_model:Tipsv2VisionModel vit:ViTForImageClassification vit_mae:ViTMAEModel
        vit_msn:ViTMSNForImageClassification vitdet:VitDetModel yolos:YolosForObjectDetection
    """,
    "large picture": """
        glpn:GLPNForDepthEstimation poolformer:PoolFormerForImageClassification pvt:PvtForImageClassification
        pvt_v2:PvtV2ForImageClassification rf_detr:RfDetrForObjectDetection segformer:SegformerForImageClassification
        swiftformer:SwiftFormerForImageClassification
    """,
    "text to text": """
        bart:BartForConditionalGeneration bigbird_pegasus:BigBirdPegasusForConditionalGeneration
        blenderbot:BlenderbotForConditionalGeneration blenderbot-small:BlenderbotSmallForConditionalGeneration
        encoder-decoder:EncoderDecoderModel led:LEDForConditionalGeneration longt5:LongT5ForConditionalGeneration
        m2m_100:M2M100ForConditionalGeneration marian:MarianMTModel mbart:MBartForConditionalGeneration
        mt5:MT5ForConditionalGeneration nllb-moe:NllbMoeForConditionalGeneration
        pegasus:PegasusForConditionalGeneration pegasus_x:PegasusXForConditionalGeneration
        plbart:PLBartForConditionalGeneration pop2piano:Pop2PianoForConditionalGeneration
        prophetnet:ProphetNetForConditionalGeneration seamless_m4t:SeamlessM4TForTextToText
        seamless_m4t_v2:SeamlessM4Tv2ForTextToText switch_transformers:SwitchTransformersForConditionalGeneration
        t5:T5ForConditionalGeneration t5gemma:T5GemmaForConditionalGeneration umt5:UMT5ForConditionalGeneration
    """,
    "spectrum to text": """
        canary:CanaryForConditionalGeneration nemotron3_5_asr:Nemotron3_5AsrForRNNT
        nemotron_asr_streaming:NemotronAsrStreamingForRNNT parakeet_rnnt:ParakeetForRNNT
        speech_to_text:Speech2TextForConditionalGeneration parakeet_tdt:ParakeetForTDT
    """,
    "sound": """
        data2vec-audio:Data2VecAudioForCTC hubert:HubertForCTC sew:SEWForCTC sew-d:SEWDForCTC
        unispeech:UniSpeechForCTC unispeech-sat:UniSpeechSatForCTC wav2vec2:Wav2Vec2ForCTC wavlm:WavLMForCTC
    """,
    "sound to text": """
        moonshine:MoonshineForConditionalGeneration
    """,
    "spectrum": """
        nemotron_asr_streaming_encoder:NemotronAsrStreamingEncoder parakeet_ctc:ParakeetForCTC
        parakeet_encoder:ParakeetEncoder
    """,
}


def make(family: str, kind: str, changes: dict[str, Any]) -> nn.Module:
    """Return a small network of a family."""
    import transformers

    transformers.logging.set_verbosity_error()
    config = small_config(transformers.CONFIG_MAPPING[family], changes)
    network: nn.Module = getattr(transformers, kind)(config)
    return network


def _table() -> Table:
    found: Table = {}
    for inputs, rows in PLAIN.items():
        for row in rows.split():
            family, kind = row.split(":")
            found[family] = (kind, {}, INPUTS[inputs])
    return {**found, **transformers_pictures.TABLE, **transformers_texts.TABLE, **transformers_mixed.TABLE}


NETWORKS = [
    Network(f"transformers:{family}", partial(make, family, kind, changes), partial(made, inputs), kind)
    for family, (kind, changes, inputs) in _table().items()
]
